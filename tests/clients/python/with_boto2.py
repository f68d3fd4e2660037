import os

import boto
import boto.sts
from rounds import rounds

boto.config.add_section("Boto")
boto.config.set("Boto", "ca_certificates_file", os.environ["SSL_CERT_FILE"])
region = "eu-central-1"


def arn():
    connection = boto.sts.connect_to_region(region)
    return connection.get_object("GetCallerIdentity", {}, Identity, verb="POST").arn


class Identity(object):
    def __init__(self, connection):
        self.arn = None

    def startElement(self, name, attrs, connection):
        return None

    def endElement(self, name, value, connection):
        if name == "Arn":
            self.arn = value


rounds(arn)
