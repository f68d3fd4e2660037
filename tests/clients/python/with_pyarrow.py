import os

from pyarrow import fs
from rounds import BUCKET, OBJECT, rounds

fs.initialize_s3(fs.S3LogLevel.Fatal)
client = fs.S3FileSystem(region="eu-central-1", tls_ca_file_path=os.environ["SSL_CERT_FILE"])


def read():
    with client.open_input_stream(f"{BUCKET}/{OBJECT}") as answer:
        answer.read()


rounds(read)
