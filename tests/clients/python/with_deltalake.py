from deltalake import DeltaTable
from rounds import BUCKET, OBJECT, rounds


def read():
    if not DeltaTable.is_deltatable(f"s3://{BUCKET}/{OBJECT}"):
        raise ValueError("there is no table")


rounds(read)
