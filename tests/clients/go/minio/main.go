// MinIO's client for Go.
package main

import (
	"context"
	"io"
	"os"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"kube2irsa.io/kube2irsa/clients/rounds"
)

func main() {
	client, err := minio.New("s3.eu-central-1.amazonaws.com", &minio.Options{
		Creds:  credentials.NewIAM(""),
		Region: "eu-central-1",
		Secure: true,
	})
	rounds.Run(func() (string, error) {
		if err != nil {
			return "", err
		}
		object, err := client.GetObject(context.Background(), "sandbox-bucket", os.Args[3], minio.GetObjectOptions{})
		if err != nil {
			return "", err
		}
		defer object.Close()
		_, err = io.Copy(io.Discard, object)
		return "", err
	})
}
