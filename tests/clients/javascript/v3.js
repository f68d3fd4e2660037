const { GetCallerIdentityCommand, STSClient } = require('@aws-sdk/client-sts')
const rounds = require('./rounds')

const sts = new STSClient()
rounds(async () => (await sts.send(new GetCallerIdentityCommand())).Arn)
