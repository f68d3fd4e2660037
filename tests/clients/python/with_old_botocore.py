# Libraries that come with it want names that Python 3.10 has moved.
import collections
import collections.abc

for name in ("Callable", "Mapping", "MutableMapping"):
    setattr(collections, name, getattr(collections.abc, name))

import botocore.session  # noqa: E402
from rounds import rounds  # noqa: E402

session = botocore.session.get_session()
rounds(lambda: session.create_client("sts").get_caller_identity()["Arn"])
