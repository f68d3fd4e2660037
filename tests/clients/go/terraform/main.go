// What Terraform's AWS provider and its S3 backend find credentials with.
package main

import (
	"context"
	"errors"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	awsbase "github.com/hashicorp/aws-sdk-go-base/v2"

	"kube2irsa.io/kube2irsa/clients/rounds"
)

func main() {
	ctx := context.Background()
	rounds.Run(func() (string, error) {
		// As Terraform does, a configuration for each run.
		ctx, loaded, diagnostics := awsbase.GetAwsConfig(ctx, &awsbase.Config{Region: "eu-central-1"})
		if diagnostics.HasError() {
			return "", errors.New(diagnostics.Errors()[0].Summary() + " " + diagnostics.Errors()[0].Detail())
		}
		identity, err := sts.NewFromConfig(loaded).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		if err != nil {
			return "", err
		}
		return aws.ToString(identity.Arn), nil
	})
}
