use std::io::Write as _;

use clap::Parser as _;
use tempfile::{NamedTempFile, TempPath};

use super::{
    aws::{check_sts, is_proxy, location, region_of},
    *,
};
use crate::cli::{Cli, Command};

fn args(flags: &[&str]) -> RunArgs {
    match Cli::try_parse_from(["kube2irsa", "run"].iter().chain(flags)).unwrap().command {
        Command::Run(args) => *args,
        _ => panic!(),
    }
}

fn errors(flags: &[&str]) -> Vec<String> {
    Config::new(&args(flags)).map_or_else(|errors| errors.0, |_| Vec::new())
}

fn file(text: &str) -> TempPath {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.into_temp_path()
}

const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: 'https://192.0.2.1:6443'}}]
users: [{name: u, user: {token: very-secret}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
";

#[test]
fn what_a_node_needs_is_little() {
    let kubeconfig = file(KUBECONFIG);
    let kubeconfig = kubeconfig.to_str().unwrap();
    let flags = ["--node-name", "ip-10-0-0-1.eu-central-1.compute.internal", "--kubeconfig", kubeconfig];
    let config = Config::new(&args(&flags)).unwrap();
    assert_eq!(config.sts.location, StsLocation::AskImds("http://169.254.169.254".parse().unwrap()));
    assert_eq!(config.listen.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0:9169", "[::]:9169"]);
    assert_eq!(config.intercept, Intercept::Redirect(Wanted::Auto));
    assert!(config.admin_listen.ip().is_loopback());
    assert!(!config.remove_taint, "it needs a right that nothing else does");
    assert_eq!(config.container_endpoints, [CONTAINER], "the addresses of EKS Pod Identity are that agent's");
    assert!(!format!("{config:?}").contains("very-secret"));
}

#[test]
fn the_operators_address_may_stand_in_brackets_whatever_its_family() {
    for (text, address) in
        [("10.0.0.1:9171", "10.0.0.1:9171"), ("[10.0.0.1]:9171", "10.0.0.1:9171"), ("[fd00::1]:9171", "[fd00::1]:9171")]
    {
        let mut errors = Errors::default();
        assert_eq!(admin_listen(text, &mut errors), address.parse().unwrap());
        assert!(errors.or(()).is_ok(), "{text}");
    }
    for text in
        ["fd00::1:9171", "[10.0.0.1]", "[10.0.0.1]9171", "[10.0.0.1]:", "[10.0.0.1]:65536", "[]:9171", "[::1:9171"]
    {
        let mut errors = Errors::default();
        admin_listen(text, &mut errors);
        assert!(errors.or(()).is_err(), "{text}");
    }
}

#[test]
fn all_errors_are_said_at_once_and_each_names_its_flag() {
    let broken = file("clusters: [very-secret");
    let broken = broken.to_str().unwrap();
    let no_pem = file("very-secret");
    let no_pem = no_pem.to_str().unwrap();
    let flags = [
        ("--node-name", "Not_A_Node"),
        ("--kubeconfig", broken),
        ("--listen", "here"),
        ("--token-access", "both"),
        ("--admin-listen", "127.0.0.1"),
        ("--region", "Europe"),
        ("--sts-endpoint", "http://sts.example.com"),
        ("--imds-endpoint", "https://169.254.169.254"),
        ("--token-audience", ""),
        ("--namespace-policy", "maybe"),
        ("--annotation-prefix", "eks.amazonaws.com/"),
        ("--aws-account", "12345678901x"),
        ("--aws-partition", "azure"),
        ("--max-connections-per-pod", "0"),
        ("--max-connections", "many"),
        ("--requests-per-pod", "0"),
        ("--request-burst-per-pod", "1.5"),
        ("--max-request-head", "1023"),
        ("--max-request-body", "65537"),
        ("--request-timeout", "0"),
        ("--idle-timeout", "NaN"),
        ("--state-dir", ""),
        ("--allow-path", "/latest/user-data"),
        ("--intercept", "ebpf"),
        ("--container-endpoints", "169.254.169.254"),
        ("--ca-bundle", no_pem),
        ("--log-format", "xml"),
        ("--log-level", "loud"),
        ("--audit-log", "/nowhere/audit.log"),
        ("--cluster-name", "prod*"),
        ("--worker-threads", "0"),
    ];
    let typed = flags.iter().flat_map(|(flag, value)| [*flag, *value]).collect::<Vec<_>>();
    let errors = errors(&typed);
    assert_eq!(errors.len(), flags.len(), "{errors:#?}");
    for (flag, _) in flags {
        assert!(errors.iter().any(|error| error.starts_with(flag)), "{flag}: {errors:#?}");
    }
    assert!(!errors.concat().contains("very-secret"), "{errors:#?}");
}

#[test]
fn a_region_is_needed_only_where_nobody_can_be_asked() {
    let kubeconfig = file(KUBECONFIG);
    let kubeconfig = kubeconfig.to_str().unwrap();
    let with = |flags: &[&str]| errors(&[&["--node-name", "n", "--kubeconfig", kubeconfig], flags].concat());
    assert_eq!(with(&["--imds-endpoint", "off"]).len(), 1);
    assert!(with(&["--imds-endpoint", "off", "--region", "eu-central-1"]).is_empty());
    assert!(with(&["--imds-endpoint", "off", "--sts-endpoint", "https://sts.example.com"]).is_empty());
}

#[test]
fn signatures_are_for_the_region_that_is_given_or_that_the_endpoint_names() {
    for (host, region) in [
        ("sts.eu-central-1.amazonaws.com", Some("eu-central-1")),
        ("sts-fips.us-east-2.amazonaws.com", Some("us-east-2")),
        ("sts.us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
        ("sts.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
        ("vpce-0a1b-2c3d.sts.eu-west-1.vpce.amazonaws.com", Some("eu-west-1")),
        ("vpce-0a1b-2c3d-eu-west-1a.sts.eu-west-1.vpce.amazonaws.com", Some("eu-west-1")),
        ("sts.amazonaws.com", Some("us-east-1")),
        ("sts.example.com", None),
        ("sts", None),
        ("192.0.2.1", None),
    ] {
        assert_eq!(region_of(host).as_deref(), region, "{host}");
    }
    let location = |flags: &[&str]| location(&args(flags), None, &mut Errors::default());
    let endpoint = |region: &str| {
        let url = "https://sts.eu-central-1.amazonaws.com:443".to_owned();
        StsLocation::Endpoint { url, region: Some(region.to_owned()) }
    };
    let flags = ["--sts-endpoint", "https://sts.eu-central-1.amazonaws.com:443"];
    assert_eq!(location(&flags), endpoint("eu-central-1"));
    assert_eq!(location(&[&flags[..], &["--region", "eu-west-1"]].concat()), endpoint("eu-west-1"));
}

#[test]
fn a_proxy_has_a_host_and_speaks_http() {
    for (url, good) in [
        ("", true),
        ("http://proxy.example.com:3128", true),
        ("http://proxy.example.com:3128/", true),
        ("https://user:p%40ss@proxy", true),
        ("192.0.2.1:8080", true),
        ("http://[2001:db8::1]:3128", true),
        ("http://", false),
        ("http://user:pass@", false),
        ("socks5://proxy:1080", false),
        ("http://a b", false),
    ] {
        assert_eq!(is_proxy(url), good, "{url}");
    }
}

#[test]
fn the_account_of_role_names_is_given_or_asked_for_each_part_by_itself() {
    let kubeconfig = file(KUBECONFIG);
    let kubeconfig = kubeconfig.to_str().unwrap();
    let with = |flags: &[&str]| {
        let given = ["--node-name", "n", "--kubeconfig", kubeconfig, "--region", "eu-central-1"];
        Config::new(&args(&[&given, flags].concat())).map(|config| config.compose_role_arn)
    };
    let (partition, account) = (["--aws-partition", "aws-cn"], ["--aws-account", "111122223333"]);
    let given = |text: &str| Source::Given(text.to_owned());
    let asked = || Source::AskImds("http://169.254.169.254".parse().unwrap());
    let compose = |partition, account| Ok(Some(ComposeRoleArn { partition, account }));
    assert_eq!(with(&[&partition[..], &account].concat()), Ok(None), "without the flag nothing is composed");
    assert_eq!(with(&["--imds-endpoint", "off"]), Ok(None));
    assert_eq!(with(&["--compose-role-arn"]), compose(asked(), asked()));
    assert_eq!(with(&[&["--compose-role-arn"][..], &account].concat()), compose(asked(), given("111122223333")));

    let off = ["--compose-role-arn", "--imds-endpoint", "off"];
    let both = [&off[..], &partition, &account].concat();
    assert_eq!(with(&both), compose(given("aws-cn"), given("111122223333")));
    assert_eq!(with(&off).unwrap_err().0.len(), 2);
    assert_eq!(with(&[&off[..], &account].concat()).unwrap_err().0.len(), 1);
}

#[test]
fn a_token_goes_over_plain_http_to_loopback_only() {
    for (url, good) in [
        ("https://sts.eu-central-1.amazonaws.com", true),
        ("https://vpce-1.sts.eu-central-1.vpce.amazonaws.com:8443/", true),
        ("http://127.0.0.1:8000", true),
        ("http://[::1]:8000", true),
        ("http://localhost", true),
        ("http://localhost.example.com", false),
        ("http://10.0.0.1", false),
        ("http://user@127.0.0.1", false),
        ("ftp://127.0.0.1", false),
        ("https://sts.example.com/path", false),
        ("sts.example.com", false),
    ] {
        assert_eq!(check_sts(url).is_ok(), good, "{url}");
    }
}

#[test]
fn a_kubeconfig_must_lead_to_a_cluster() {
    for (name, text) in [
        ("empty", ""),
        ("list", "[1]"),
        ("no-context", &KUBECONFIG.replace("current-context: x", "current-context: y")),
        ("no-cluster", &KUBECONFIG.replace("{cluster: c,", "{cluster: d,")),
        ("proxy", &KUBECONFIG.replace("6443'", "6443', proxy-url: 'http://192.0.2.2:3128'")),
    ] {
        assert!(read_kubeconfig(file(text).to_str().unwrap()).is_err(), "{name}");
    }
    assert!(read_kubeconfig("/nowhere").is_err());
}

#[test]
fn pods_cannot_be_sent_to_loopback_or_to_the_operators_port() {
    let kubeconfig = file(KUBECONFIG);
    let kubeconfig = kubeconfig.to_str().unwrap();
    let with = |flags: &[&str]| {
        errors(&[&["--node-name", "n", "--kubeconfig", kubeconfig, "--region", "eu-central-1"], flags].concat())
    };
    assert_eq!(with(&["--listen", "127.0.0.1:9169"]).len(), 1);
    assert!(with(&["--listen", "127.0.0.1:9169", "--intercept", "none"]).is_empty());
    assert_eq!(with(&["--admin-listen", "127.0.0.1:9169"]).len(), 1);
    assert_eq!(with(&["--admin-listen", "[127.0.0.1]:9169"]).len(), 1);
    assert_eq!(with(&["--listen", "10.0.0.1:9169,[::1]:9169"]).len(), 1);
    assert_eq!(with(&["--listen", "10.0.0.1:9169,10.0.0.2:9169"]).len(), 1);
}

#[test]
fn the_container_endpoint_is_served_where_the_flag_says_and_nowhere_else() {
    let kubeconfig = file(KUBECONFIG);
    let needed = ["--node-name", "node-1", "--kubeconfig", kubeconfig.to_str().unwrap(), "--container-endpoints"];
    let read = |value| Config::new(&args(&[&needed[..], &[value]].concat())).map(|config| config.container_endpoints);
    assert_eq!(read("off"), Ok(Vec::new()));
    assert_eq!(read("169.254.170.23"), Ok(vec![POD_IDENTITY_V4]));
    assert_eq!(read("169.254.170.2, 169.254.170.23,169.254.170.2"), Ok(vec![CONTAINER, POD_IDENTITY_V4]));
    assert_eq!(read("fd00:ec2::23,169.254.170.2"), Ok(vec![POD_IDENTITY_V6, CONTAINER]));
    for (value, wrong) in [
        ("", "must be"),
        ("169.254.170.2,off", "\"off\": must be"),
        ("169.254.170.3", "\"169.254.170.3\": must be"),
        ("169.254.170.2:80", "must be"),
    ] {
        let ConfigErrors(errors) = read(value).unwrap_err();
        assert!(errors.len() == 1 && errors[0].contains(wrong), "{value}: {errors:?}");
    }
}

#[test]
fn an_admin_socket_is_a_path_that_the_kernel_can_hold() {
    let of =
        |path: &str| errors(&["--admin-socket", path]).into_iter().filter(|e| e.starts_with("--admin-socket")).count();
    assert_eq!((of("/run/a.sock"), of(""), of("/run/"), of(&format!("/{}", "a".repeat(200)))), (0, 1, 1, 1));
}

#[test]
fn what_pods_name_is_heeded_only_where_that_is_said_and_the_rest_of_it_is_safe_unless_said_otherwise() {
    use crate::identity::legacy::{Format, Source as LegacySource, Unlimited};
    let kubeconfig = file(KUBECONFIG);
    let legacy = |flags: &[&str]| {
        let needed = ["--node-name", "n", "--kubeconfig", kubeconfig.to_str().unwrap()];
        Config::new(&args(&[&needed[..], flags].concat())).unwrap().legacy
    };
    assert_eq!(
        legacy(&["--legacy-source", "assume-role", "--legacy-base-role-arn", "arn:aws:iam::111122223333:role"]),
        None
    );
    let on = legacy(&["--legacy-annotations"]).unwrap();
    assert_eq!((on.source, on.unlimited, on.format), (LegacySource::WebIdentity, Unlimited::Nothing, Format::Glob));
    let imds: Uri = "http://169.254.169.254".parse().unwrap();
    let (partition, account) = (Source::AskImds(imds.clone()), Source::Given("111122223333".to_owned()));
    let of_account = Base::OfAccount(ComposeRoleArn { partition, account });
    let flags = ["--legacy-annotations", "--aws-account", "111122223333", "--legacy-source", "assume-role"];
    let assumes = legacy(&flags).unwrap();
    assert_eq!((assumes.base, assumes.identity), (of_account, Some(OwnIdentity::Node(imds))));
    for base in ["arn:aws-cn:iam::111122223333:role/team", "arn:aws-cn:iam::111122223333:role/team/"] {
        let based = legacy(&["--legacy-annotations", "--legacy-base-role-arn", base]).unwrap();
        let with_slash = Base::Given("arn:aws-cn:iam::111122223333:role/team/".to_owned());
        assert_eq!((based.base, based.identity), (with_slash, None), "{base}: no identity where none is needed");
    }
}
