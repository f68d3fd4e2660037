// The SDK for Go, version 1.
package main

import (
	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/session"
	"github.com/aws/aws-sdk-go/service/sts"

	"kube2irsa.io/kube2irsa/clients/rounds"
)

func main() {
	client := sts.New(session.Must(session.NewSession()))
	rounds.Run(func() (string, error) {
		identity, err := client.GetCallerIdentity(&sts.GetCallerIdentityInput{})
		if err != nil {
			return "", err
		}
		return aws.StringValue(identity.Arn), nil
	})
}
