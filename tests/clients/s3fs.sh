# Mounts the bucket, which takes credentials, and reads the object.
set -eu
mkdir mounted
s3fs sandbox-bucket mounted -f -o iam_role=auto,endpoint=eu-central-1,url=https://s3.eu-central-1.amazonaws.com &
trap 'umount mounted' EXIT
# It ends if it finds no credentials.
while ! mountpoint -q mounted; do
  kill -0 $!
  sleep 0.1
done
cat "mounted/$1"
