import opendal
from rounds import BUCKET, OBJECT, rounds

operator = opendal.Operator("s3", bucket=BUCKET, region="eu-central-1")
rounds(lambda: operator.read(OBJECT) and None)
