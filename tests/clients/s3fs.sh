# Mounts the bucket, which takes credentials, and reads the object.
set -eu
mkdir mounted
s3fs sandbox-bucket mounted -f -o iam_role=auto,endpoint=eu-central-1,url=https://s3.eu-central-1.amazonaws.com &
trap 'umount mounted 2> /dev/null' EXIT
# It ends if it finds no credentials.
while ! mountpoint -q mounted; do
  kill -0 $! 2> /dev/null || { echo "s3fs ended" >&2; exit 1; }
  sleep 0.1
done
cat "mounted/$1"
