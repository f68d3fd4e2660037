import os

from awscrt import auth, http, io
from rounds import rounds

HOST = "sts.eu-central-1.amazonaws.com"
QUERY = "Action=GetCallerIdentity&Version=2011-06-15"
bootstrap = io.ClientBootstrap.get_or_create_static_default()
provider = auth.AwsCredentialsProvider.new_default_chain(bootstrap)
tls = io.TlsContextOptions()
tls.override_default_trust_store_from_path(None, os.environ["SSL_CERT_FILE"])
tls = io.ClientTlsContext(tls)


def arn():
    request = http.HttpRequest("GET", f"/?{QUERY}", http.HttpHeaders([("host", HOST)]))
    config = auth.AwsSigningConfig(
        algorithm=auth.AwsSigningAlgorithm.V4,
        signature_type=auth.AwsSignatureType.HTTP_REQUEST_HEADERS,
        credentials_provider=provider,
        region="eu-central-1",
        service="sts",
    )
    auth.aws_sign_request(request, config).result(60)
    options = tls.new_connection_options()
    options.set_server_name(HOST)
    connection = http.HttpClientConnection.new(HOST, 443, bootstrap, tls_connection_options=options).result(60)
    body = bytearray()
    stream = connection.request(
        request, on_body=lambda http_stream, chunk, **_: body.extend(chunk)
    )
    stream.activate()
    status = stream.completion_future.result(60)
    connection.close()
    text = body.decode()
    if status != 200:
        raise ValueError(text)
    return text.split("<Arn>")[1].split("</Arn>")[0]


rounds(arn)
