//! The clients: what each is, where it comes from, how it is asked who it is, and what is known to differ.

use crate::columns::Column;

/// A client that looks for credentials at the metadata service.
#[derive(Debug)]
pub(crate) struct Client {
    /// In names of pods, roles and objects.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) language: &'static str,
    pub(crate) origin: Origin,
    /// The program and its arguments. `{…}` stands for what [`crate::run`] knows.
    pub(crate) command: &'static [&'static str],
    pub(crate) environment: &'static [(&'static str, &'static str)],
    pub(crate) asks: Asks,
    /// Whether one process asks again and again; the others are started anew each time.
    pub(crate) lives: bool,
    /// Where it does not do what it should, and why that is not ours to mend.
    pub(crate) exceptions: &'static [(Column, &'static str)],
}

/// Where a client comes from. Its version is pinned there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// PyPI: a file of `python/requirements`, and the package in it.
    Python(&'static str, &'static str),
    /// A module of `go/go.mod`.
    Go(&'static str),
    /// A package of `javascript/package.json`.
    Npm(&'static str),
    /// An artifact of `java/pom.xml`.
    Maven(&'static str),
    /// A crate of this workspace's `Cargo.lock`.
    Cargo(&'static str),
    /// A package of Debian.
    Debian(&'static str),
}

/// Who tells a client's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// STS, by the client itself, which prints the ARN.
    Sts,
    /// S3: the ARN of whoever read the client's own object.
    S3,
}

macro_rules! rounds {
    ($($word:literal),+) => { &[$($word),+, "{count}", "{pause}", "{object}"] };
}

const NONE: &[(Column, &str)] = &[];
/// What trusts certificates of its own, and not the system's, unless it is told.
const NODE: &[(&str, &str)] = &[("NODE_EXTRA_CA_CERTS", "{ca}")];
const BOTOCORE: &[(&str, &str)] = &[("AWS_CA_BUNDLE", "{ca}")];
const NEVER_AGAIN: (Column, &str) =
    (Column::Outage, "a process that found no credentials at first does not look again");
/// Whether that is seen depends on when it asks.
const POSTPONES: (Column, &str) = (
    Column::Renewal,
    "takes credentials that have less than 17 to 25 minutes left for good for longer than they are, from the real service \
     too, and with sessions of 15 minutes that is all of them",
);
const V1_ONLY: (Column, &str) = (Column::V2Required, "speaks version 1 only");

const fn python(
    name: &'static str,
    title: &'static str,
    origin: Origin,
    command: &'static [&'static str],
    asks: Asks,
    exceptions: &'static [(Column, &'static str)],
) -> Client {
    Client { name, title, language: "Python", origin, command, environment: BOTOCORE, asks, lives: true, exceptions }
}

/// Debian's packages that the programs need besides those that are clients themselves.
pub(crate) const DEBIAN: &[&str] =
    &["ca-certificates", "fuse", "php-cli", "php-curl", "php-xml", "python3-venv", "ruby"];

/// All of them.
pub(crate) const CLIENTS: &[Client] = &[
    python(
        "boto3",
        "boto3",
        Origin::Python("current", "boto3"),
        rounds!["{tools}/current/bin/python", "{source}/python/with_boto3.py"],
        Asks::Sts,
        &[POSTPONES],
    ),
    python(
        "botocore-1-17",
        "botocore of 2020",
        Origin::Python("botocore-1.17", "botocore"),
        rounds!["{tools}/botocore-1.17/bin/python", "{source}/python/with_old_botocore.py"],
        Asks::Sts,
        NONE,
    ),
    python(
        "botocore-1-12",
        "botocore of 2019",
        Origin::Python("botocore-1.12", "botocore"),
        rounds!["{tools}/botocore-1.12/bin/python", "{source}/python/with_old_botocore.py"],
        Asks::Sts,
        &[V1_ONLY],
    ),
    python(
        "botocore-1-10",
        "botocore of 2018",
        Origin::Python("botocore-1.10", "botocore"),
        rounds!["{tools}/botocore-1.10/bin/python", "{source}/python/with_old_botocore.py"],
        Asks::Sts,
        &[V1_ONLY],
    ),
    python(
        "aiobotocore",
        "aiobotocore",
        Origin::Python("aiobotocore", "aiobotocore"),
        rounds!["{tools}/aiobotocore/bin/python", "{source}/python/with_aiobotocore.py"],
        Asks::Sts,
        &[POSTPONES],
    ),
    python(
        "boto2",
        "boto 2",
        Origin::Debian("python3-boto"),
        rounds!["/usr/bin/python3", "{source}/python/with_boto2.py"],
        Asks::Sts,
        &[V1_ONLY],
    ),
    python(
        "minio-py",
        "MinIO's client for Python",
        Origin::Python("current", "minio"),
        rounds!["{tools}/current/bin/python", "{source}/python/with_minio.py"],
        Asks::S3,
        NONE,
    ),
    Client {
        name: "aws-cli-1",
        title: "aws (command line, 1)",
        language: "Python",
        origin: Origin::Python("awscli", "awscli"),
        command: &["{tools}/awscli/bin/aws", "sts", "get-caller-identity", "--query", "Arn", "--output", "text"],
        environment: BOTOCORE,
        asks: Asks::Sts,
        lives: false,
        exceptions: NONE,
    },
    Client {
        name: "aws-cli-2",
        title: "aws (command line, 2)",
        language: "Python",
        origin: Origin::Debian("awscli"),
        command: &["/usr/bin/aws", "sts", "get-caller-identity", "--query", "Arn", "--output", "text"],
        environment: BOTOCORE,
        asks: Asks::Sts,
        lives: false,
        exceptions: NONE,
    },
    Client {
        name: "s3cmd",
        title: "s3cmd",
        language: "Python",
        origin: Origin::Debian("s3cmd"),
        command: &["/usr/bin/s3cmd", "--region=eu-central-1", "ls", "s3://sandbox-bucket/{object}"],
        environment: &[],
        asks: Asks::S3,
        lives: false,
        exceptions: NONE,
    },
    Client {
        name: "sdk-rust",
        title: "SDK for Rust",
        language: "Rust",
        origin: Origin::Cargo("aws-config"),
        command: rounds!["{sandbox}", "--client-rounds"],
        environment: &[],
        asks: Asks::Sts,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "object-store",
        title: "object_store",
        language: "Rust",
        origin: Origin::Python("current", "obstore"),
        command: rounds!["{tools}/current/bin/python", "{source}/python/with_obstore.py"],
        environment: &[],
        asks: Asks::S3,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "deltalake",
        title: "Delta Lake (object_store, aws-config)",
        language: "Rust",
        origin: Origin::Python("current", "deltalake"),
        command: rounds!["{tools}/current/bin/python", "{source}/python/with_deltalake.py"],
        environment: &[],
        asks: Asks::S3,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "opendal",
        title: "OpenDAL (reqsign)",
        language: "Rust",
        origin: Origin::Python("current", "opendal"),
        command: rounds!["{tools}/current/bin/python", "{source}/python/with_opendal.py"],
        environment: &[],
        asks: Asks::S3,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "crt",
        title: "Common Runtime (awscrt)",
        language: "C",
        origin: Origin::Python("current", "awscrt"),
        command: rounds!["{tools}/current/bin/python", "{source}/python/with_awscrt.py"],
        environment: &[],
        asks: Asks::Sts,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "sdk-cpp",
        title: "SDK for C++ (pyarrow)",
        language: "C++",
        origin: Origin::Python("current", "pyarrow"),
        command: rounds!["{tools}/current/bin/python", "{source}/python/with_pyarrow.py"],
        environment: &[],
        asks: Asks::S3,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "gdal",
        title: "GDAL",
        language: "C++",
        origin: Origin::Debian("gdal-bin"),
        command: &["/usr/bin/ogrinfo", "-ro", "CSV:/vsis3/sandbox-bucket/{object}"],
        environment: &[],
        asks: Asks::S3,
        lives: false,
        exceptions: NONE,
    },
    Client {
        name: "s3fs",
        title: "s3fs",
        language: "C++",
        origin: Origin::Debian("s3fs"),
        command: &["/bin/sh", "{source}/s3fs.sh", "{object}"],
        environment: &[],
        asks: Asks::S3,
        lives: false,
        exceptions: &[(Column::V2Required, "asks for the role's name in version 1")],
    },
    Client {
        name: "sdk-go-1",
        title: "SDK for Go, 1",
        language: "Go",
        origin: Origin::Go("github.com/aws/aws-sdk-go"),
        command: rounds!["{tools}/go/sdk1"],
        environment: &[],
        asks: Asks::Sts,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "sdk-go-2",
        title: "SDK for Go, 2",
        language: "Go",
        origin: Origin::Go("github.com/aws/aws-sdk-go-v2/config"),
        command: rounds!["{tools}/go/sdk2"],
        environment: &[],
        asks: Asks::Sts,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "terraform",
        title: "Terraform's chain of credentials",
        language: "Go",
        origin: Origin::Go("github.com/hashicorp/aws-sdk-go-base/v2"),
        command: rounds!["{tools}/go/terraform"],
        environment: &[],
        asks: Asks::Sts,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "terraform-1",
        title: "the same before 2023",
        language: "Go",
        origin: Origin::Go("github.com/hashicorp/aws-sdk-go-base"),
        command: rounds!["{tools}/go/terraform_v1"],
        environment: &[],
        asks: Asks::Sts,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "minio-go",
        title: "MinIO's client for Go",
        language: "Go",
        origin: Origin::Go("github.com/minio/minio-go/v7"),
        command: rounds!["{tools}/go/minio"],
        environment: &[],
        asks: Asks::S3,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "s5cmd",
        title: "s5cmd",
        language: "Go",
        origin: Origin::Python("current", "s5cmd"),
        command: &["{tools}/current/bin/s5cmd", "cat", "s3://sandbox-bucket/{object}"],
        environment: &[],
        asks: Asks::S3,
        lives: false,
        exceptions: NONE,
    },
    Client {
        name: "rclone",
        title: "rclone",
        language: "Go",
        origin: Origin::Debian("rclone"),
        command: &["/usr/bin/rclone", "cat", ":s3,provider=AWS,env_auth,region=eu-central-1:sandbox-bucket/{object}"],
        environment: &[],
        asks: Asks::S3,
        lives: false,
        exceptions: NONE,
    },
    Client {
        name: "restic",
        title: "restic",
        language: "Go",
        origin: Origin::Debian("restic"),
        command: &[
            "/usr/bin/restic",
            "--no-cache",
            "--no-lock",
            "-r",
            "s3:https://s3.eu-central-1.amazonaws.com/sandbox-bucket/{object}",
            "snapshots",
        ],
        environment: &[("RESTIC_PASSWORD", "sandbox")],
        asks: Asks::S3,
        lives: false,
        exceptions: NONE,
    },
    Client {
        name: "sdk-js-2",
        title: "SDK for JavaScript, 2",
        language: "JavaScript",
        origin: Origin::Npm("aws-sdk"),
        command: rounds!["node", "{tools}/javascript/v2.js"],
        environment: NODE,
        asks: Asks::Sts,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "sdk-js-3",
        title: "SDK for JavaScript, 3",
        language: "JavaScript",
        origin: Origin::Npm("@aws-sdk/client-sts"),
        command: rounds!["node", "{tools}/javascript/v3.js"],
        environment: NODE,
        asks: Asks::Sts,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "sdk-java-1",
        title: "SDK for Java, 1",
        language: "Java",
        origin: Origin::Maven("aws-java-sdk-sts"),
        command: rounds![
            "java",
            "-XX:TieredStopAtLevel=1",
            "-Djavax.net.ssl.trustStore={truststore}",
            "-Djavax.net.ssl.trustStorePassword=sandbox",
            "-cp",
            "{tools}/java/classes:{tools}/java/lib/*",
            "V1"
        ],
        environment: &[],
        asks: Asks::Sts,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "sdk-java-2",
        title: "SDK for Java, 2",
        language: "Java",
        origin: Origin::Maven("sts"),
        command: rounds![
            "java",
            "-XX:TieredStopAtLevel=1",
            "-Djavax.net.ssl.trustStore={truststore}",
            "-Djavax.net.ssl.trustStorePassword=sandbox",
            "-cp",
            "{tools}/java/classes:{tools}/java/lib/*",
            "V2"
        ],
        environment: &[],
        asks: Asks::Sts,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "sdk-ruby",
        title: "SDK for Ruby",
        language: "Ruby",
        origin: Origin::Debian("ruby-aws-sdk-core"),
        command: rounds!["/usr/bin/ruby", "{source}/ruby/sdk.rb"],
        environment: &[],
        asks: Asks::Sts,
        lives: true,
        exceptions: &[NEVER_AGAIN],
    },
    Client {
        name: "fog",
        title: "fog",
        language: "Ruby",
        origin: Origin::Debian("ruby-fog-aws"),
        command: rounds!["/usr/bin/ruby", "{source}/ruby/fog.rb"],
        environment: &[],
        asks: Asks::S3,
        lives: true,
        exceptions: NONE,
    },
    Client {
        name: "async-aws",
        title: "AsyncAws",
        language: "PHP",
        origin: Origin::Debian("php-async-aws-core"),
        command: rounds!["/usr/bin/php", "{source}/php/async_aws.php"],
        environment: &[],
        asks: Asks::Sts,
        lives: true,
        exceptions: &[V1_ONLY, NEVER_AGAIN],
    },
];
