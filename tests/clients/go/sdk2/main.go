// The SDK for Go, version 2.
package main

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"kube2irsa.io/kube2irsa/clients/rounds"
)

func main() {
	ctx := context.Background()
	loaded, err := config.LoadDefaultConfig(ctx)
	client := sts.NewFromConfig(loaded)
	rounds.Run(func() (string, error) {
		if err != nil {
			return "", err
		}
		identity, err := client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		if err != nil {
			return "", err
		}
		return aws.ToString(identity.Arn), nil
	})
}
