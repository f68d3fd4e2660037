from obstore.store import S3Store
from rounds import BUCKET, OBJECT, rounds

store = S3Store(BUCKET, region="eu-central-1")
rounds(lambda: store.get(OBJECT).bytes() and None)
