// The same of Terraform before 2023.
package main

import (
	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/service/sts"
	awsbase "github.com/hashicorp/aws-sdk-go-base"

	"kube2irsa.io/kube2irsa/clients/rounds"
)

func main() {
	rounds.Run(func() (string, error) {
		session, err := awsbase.GetSession(&awsbase.Config{Region: "eu-central-1"})
		if err != nil {
			return "", err
		}
		identity, err := sts.New(session).GetCallerIdentity(&sts.GetCallerIdentityInput{})
		if err != nil {
			return "", err
		}
		return aws.StringValue(identity.Arn), nil
	})
}
