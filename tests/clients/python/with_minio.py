from minio import Minio
from minio.credentials import IamAwsProvider
from rounds import BUCKET, OBJECT, rounds

client = Minio("s3.eu-central-1.amazonaws.com", region="eu-central-1", credentials=IamAwsProvider())


def read():
    with client.get_object(bucket_name=BUCKET, object_name=OBJECT) as answer:
        answer.read()


rounds(read)
