//! The image: what is in its root file system, and the main job done from there by a container runtime, with no more rights than
//! `docs/rights.md` says.
//!
//! `make test-image` lays the root out first, by the scripts by which the Dockerfile does; what it needs is in `docs/image.md`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::UdpSocket,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use sandbox::{
    cloud::STS_NAMES,
    network::{Namespace, STS_ADDRESS},
    sandbox::{NODE, Pod, Sandbox},
};
use serde_json::{Value, json};
use support::{Daemon, sdk, with_a_pod};
use tempfile::TempDir;

/// Bytes of the image as a registry keeps it and a node pulls it.
const MOST: usize = 20_000_000;
/// And of all files together, so that it does not grow unseen (docs/image.md).
const MOST_LAID_OUT: u64 = 32_000_000;

/// What can be run in it, but for libraries.
const COMMANDS: [&str; 16] = [
    "usr/local/bin/kube2irsa",
    "usr/sbin/ip6tables",
    "usr/sbin/ip6tables-legacy",
    "usr/sbin/ip6tables-legacy-restore",
    "usr/sbin/ip6tables-nft",
    "usr/sbin/ip6tables-nft-restore",
    "usr/sbin/ip6tables-restore",
    "usr/sbin/iptables",
    "usr/sbin/iptables-legacy",
    "usr/sbin/iptables-legacy-restore",
    "usr/sbin/iptables-nft",
    "usr/sbin/iptables-nft-restore",
    "usr/sbin/iptables-restore",
    "usr/sbin/nft",
    "usr/sbin/xtables-legacy-multi",
    "usr/sbin/xtables-nft-multi",
];

const PATH: &str = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn of_the_repository(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// What follows `before` in a text, up to the end of the line.
fn after<'a>(text: &'a str, before: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("{before} is missing"));
    rest.lines().next().unwrap()
}

#[test]
fn what_the_dockerfile_repeats_is_what_is_said_elsewhere() {
    let [dockerfile, makefile] = ["Dockerfile", "Makefile"].map(of_the_repository);
    assert_eq!(after(&dockerfile, "ARG VERSION="), env!("CARGO_PKG_VERSION"));
    let auditable = after(&makefile, "CARGO_AUDITABLE_VERSION := ");
    assert_eq!(after(&dockerfile, "cargo install --quiet --locked --version "), format!("{auditable} cargo-auditable"));
    assert_eq!(after(&dockerfile, "ENV PATH="), PATH);
    let release = |image: &str| after(&dockerfile, image).rsplit('-').next().unwrap().to_owned();
    assert_eq!(release("ARG RUST="), "bookworm");
    assert!(after(&dockerfile, "ARG DEBIAN=debian:").starts_with("bookworm"));
    assert!(of_the_repository("image/root.sh").contains("bookworm /dev/null"));
}

/// The root file system that was laid out.
fn root() -> PathBuf {
    let root = std::env::var_os("KUBE2IRSA_IMAGE_ROOT").map_or_else(|| "target/image/root".into(), PathBuf::from);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    assert!(root.join("usr/local/bin/kube2irsa").exists(), "no image in {}: make image-root", root.display());
    root
}

/// All below a folder, by the path from there.
fn all_in(folder: &Path) -> BTreeMap<String, fs::Metadata> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            all.insert(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned(), metadata);
        }
    }
    all
}

#[test]
#[ignore = "needs the image's root: make test-image"]
fn nothing_is_in_it_but_the_daemon_and_what_it_runs() {
    let all = all_in(&root());
    let is_in = |path: &str, folders: &[&str]| folders.iter().any(|folder| path.starts_with(folder));
    let commands = all.iter().filter(|(path, metadata)| {
        let runs = metadata.is_file() && metadata.mode() & 0o111 != 0 && !is_in(path, &["usr/lib/"]);
        runs || metadata.is_symlink() && is_in(path, &["usr/sbin/", "usr/bin/", "usr/local/"])
    });
    assert_eq!(commands.map(|(path, _)| path.as_str()).collect::<Vec<_>>(), COMMANDS);
    for (path, metadata) in &all {
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "{path} is root's");
        assert_eq!(metadata.mode() & 0o6000, 0, "{path} gives nobody other rights");
        assert!(metadata.is_symlink() || metadata.mode() & 0o022 == 0, "{path} is written by root alone");
        assert!(metadata.is_file() || metadata.is_dir() || metadata.is_symlink(), "{path} is a file");
        assert!(!metadata.file_type().is_socket(), "{path}");
        assert_eq!(metadata.mtime(), all["usr/sbin/nft"].mtime(), "{path} has everyone's time");
    }
    let libraries = all.keys().filter(|path| path.starts_with("usr/lib/") && !path.contains("/xtables"));
    assert!(libraries.count() < 40, "{:?}", all.keys());
    let size = all.values().filter(|metadata| metadata.is_file()).map(fs::Metadata::len).sum::<u64>();
    let packed = Command::new("gzip").args(["--best", "--stdout"]).arg(root().with_extension("tar")).output().unwrap();
    assert!(packed.status.success(), "{packed:?}");
    println!("{size} bytes, {} as they are pulled", packed.stdout.len());
    assert!(packed.stdout.len() <= MOST, "{}", packed.stdout.len());
    assert!(size <= MOST_LAID_OUT, "{size}");
}

#[test]
#[ignore = "needs the image's root: make test-image"]
fn every_program_in_it_finds_its_libraries_in_it() {
    let root = root();
    let all = all_in(&root);
    let loader = all.keys().find(|path| path.contains("/ld-linux-")).unwrap();
    let within = |program: &str, arguments: &[&str]| {
        let output = Command::new("chroot").arg(&root).arg(program).args(arguments).env("PATH", PATH).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        said
    };
    let mut looked_at = 0;
    for (path, metadata) in all.iter().filter(|(path, _)| path.starts_with("usr/lib") || path.starts_with("usr/sbin")) {
        if metadata.is_file() && path != loader && fs::read(root.join(path)).unwrap().starts_with(b"\x7fELF") {
            within(&format!("/{loader}"), &["--list", &format!("/{path}")]);
            looked_at += 1;
        }
    }
    assert!(looked_at > 100, "{looked_at}");
    for (command, said) in [("nft", "nftables v"), ("iptables", "(nf_tables)"), ("ip6tables-restore", "(nf_tables)")] {
        assert!(within(command, &["--version"]).contains(said), "{command}");
    }
    for command in ["iptables-legacy", "iptables-legacy-restore", "ip6tables-legacy", "ip6tables-legacy-restore"] {
        assert!(within(command, &["--version"]).contains("(legacy)"), "{command}");
    }

    // The daemon needs none.
    let alone = TempDir::new().unwrap();
    fs::copy(root.join("usr/local/bin/kube2irsa"), alone.path().join("kube2irsa")).unwrap();
    let output = Command::new("chroot").arg(alone.path()).args(["/kube2irsa", "--version"]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), concat!("kube2irsa ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
#[ignore = "needs the image's root: make test-image"]
fn scanners_find_every_debian_package_and_every_crate() {
    let root = root();
    let all = all_in(&root);
    let names = |folder: &str| {
        let below = all.keys().filter_map(|path| path.strip_prefix(folder)).filter(|name| !name.contains('/'));
        below.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let packages = names("var/lib/dpkg/status.d/");
    for package in &packages {
        let stanza = fs::read_to_string(root.join("var/lib/dpkg/status.d").join(package)).unwrap();
        assert_eq!(after(&stanza, "Package: "), package);
        assert!(stanza.contains("\nVersion: ") && stanza.contains("\nArchitecture: "), "{stanza}");
        assert!(all.contains_key(&format!("usr/share/doc/{package}/copyright")), "{package}");
    }
    for package in ["ca-certificates", "iptables", "libc6", "libgmp10", "libnftables1", "libtinfo6", "nftables"] {
        assert!(packages.contains(package), "{packages:?}");
    }
    let section = TempDir::new().unwrap();
    let file = section.path().join("dependencies");
    let objcopy = Command::new("objcopy")
        .args(["-O", "binary", "--only-section=.dep-v0", "--set-section-flags", ".dep-v0=alloc"])
        .arg(root.join("usr/local/bin/kube2irsa"))
        .arg(&file)
        .status();
    assert!(objcopy.unwrap().success());
    let inflate = "import sys, zlib; sys.stdout.buffer.write(zlib.decompress(open(sys.argv[1], 'rb').read()))";
    let output = Command::new("python3").args(["-c", inflate]).arg(&file).output().unwrap();
    let listed = serde_json::from_slice::<Value>(&output.stdout).unwrap();
    let crates = listed["packages"].as_array().unwrap().iter().map(|package| package["name"].as_str().unwrap());
    let crates = crates.collect::<BTreeSet<_>>();
    assert!(["kube2irsa", "rustls", "tokio", "aws-lc-sys"].iter().all(|name| crates.contains(name)), "{crates:?}");
    assert!(!crates.contains("kube2irsa-sandbox") && !crates.contains("rcgen"), "the sandbox is not in it: {crates:?}");
}

/// Answers every question for an address of one of STS's names, and says of others that there are none.
fn name_server(node: &Namespace) {
    let socket = node.enter(|| UdpSocket::bind("127.0.0.1:53")).unwrap().unwrap();
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let (header, rest) = question[..length].split_at(12);
            let end = rest.iter().position(|byte| *byte == 0).unwrap();
            let name = STS_NAMES.map(|name| {
                name.split('.').fold(Vec::new(), |mut wire, label| {
                    wire.push(u8::try_from(label.len()).unwrap());
                    wire.extend(label.bytes());
                    wire
                })
            });
            let asked = &rest[..end + 5];
            let is_found = name.iter().any(|name| name == &rest[..end]) && rest[end + 1..end + 3] == [0, 1];
            let mut answer = [&header[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_found), 0, 0, 0, 0], asked].concat();
            if is_found {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(STS_ADDRESS.octets());
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
}

/// What a container runtime lets a container call which has these capabilities: the profile that Debian's `podman` and
/// `buildah` come with, in the runtime's own form.
fn seccomp(capabilities: &[&str]) -> Value {
    let text = fs::read_to_string("/usr/share/containers/seccomp.json");
    let text = text.expect("the package golang-github-containers-common");
    let profile = serde_json::from_str::<Value>(&text).unwrap();
    let names = |of: &Value| -> Vec<String> { serde_json::from_value(of.clone()).unwrap_or_default() };
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let has = |name: &String| capabilities.contains(&name.as_str());
    let rules = profile["syscalls"].as_array().unwrap().iter().filter(|rule| {
        let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
        let architectures = names(&includes["arches"]);
        names(&includes["caps"]).iter().all(has)
            && !names(&excludes["caps"]).iter().any(has)
            && (architectures.is_empty() || architectures.iter().any(|name| name == architecture))
    });
    let rules = rules.map(|rule| {
        let mut rule = rule.clone();
        let fields = rule.as_object_mut().unwrap();
        fields
            .retain(|name, value| ["names", "action", "args", "errnoRet"].contains(&name.as_str()) && !value.is_null());
        rule
    });
    json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "syscalls": rules.collect::<Vec<_>>(),
    })
}

/// A container of the image on the sandbox's node, as `docs/rights.md` describes it.
struct Container {
    bundle: TempDir,
}

impl Container {
    fn new(sandbox: &Sandbox, arguments: &[&str], capabilities: &[&str]) -> Self {
        let bundle = TempDir::new().unwrap();
        // A runtime makes the places for its mounts, and not in the image itself.
        let copy = Command::new("cp").arg("-a").arg(root()).arg(bundle.path().join("root")).status();
        assert!(copy.unwrap().success());
        fs::write(bundle.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
        fs::write(bundle.path().join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
        fs::create_dir_all(sandbox.state_dir()).unwrap();
        File::options().create(true).append(true).open("/run/xtables.lock").unwrap();

        let bind = |from: &Path, to: &str, mode: &str| json!({"destination": to, "type": "bind", "source": from, "options": ["bind", mode, "nosuid", "nodev", "noexec"]});
        let of = |file: &str| bundle.path().join(file);
        let args = [&["/usr/local/bin/kube2irsa"], arguments].concat();
        let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({"type": kind}));
        let config = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "root", "readonly": true},
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": [format!("PATH={PATH}")],
                "cwd": "/",
                "noNewPrivileges": true,
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro", "nosuid", "nodev", "noexec"]},
                bind(&of("hosts"), "/etc/hosts", "ro"),
                bind(&of("resolv.conf"), "/etc/resolv.conf", "ro"),
                bind(&sandbox.kubeconfig(), "/etc/kube2irsa/kubeconfig", "ro"),
                bind(&sandbox.ca_file(), "/etc/kube2irsa/ca.pem", "ro"),
                bind(&sandbox.state_dir(), "/run/kube2irsa", "rw"),
                bind(Path::new("/run/xtables.lock"), "/run/xtables.lock", "rw"),
            ],
            "linux": {
                "namespaces": namespaces,
                "seccomp": seccomp(capabilities),
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        });
        fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
        Self { bundle }
    }

    /// The runtime, in a process namespace that ends with it, so that nothing outlives this test.
    fn command(&self, sandbox: &Sandbox) -> sandbox::network::Command {
        const RUN: &str = "mount -t cgroup2 cgroup2 /sys/fs/cgroup; \
            exec crun --root \"$1/state\" --cgroup-manager disabled run --bundle \"$1\" kube2irsa";
        let unshare = ["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", RUN, "sh"];
        sandbox.node().command("unshare").args(unshare).arg(self.bundle.path())
    }
}

/// The main job: without us the node's role, with us the pod's own, by the rules that `command` lists; and all of it removed.
fn does_the_main_job(sandbox: &Sandbox, pod: &Pod, flags: &[&str], capabilities: &[&str], command: &[&str]) {
    let listed = || {
        let output = sandbox.node().command(command[0]).args(&command[1..]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let without_us = sdk(sandbox, pod).arn.unwrap();
    assert!(without_us.contains("assumed-role/node/"), "or the rest proves little: {without_us}");
    name_server(sandbox.node());
    let run = [
        "run",
        "--node-name",
        NODE,
        "--kubeconfig",
        "/etc/kube2irsa/kubeconfig",
        "--ca-bundle",
        "/etc/kube2irsa/ca.pem",
    ];
    let container = Container::new(sandbox, &[&run, flags].concat(), capabilities);
    let mut daemon = Daemon::of(sandbox, container.command(sandbox));
    daemon.wait_until_ready(sandbox);
    assert!(sdk(sandbox, pod).arn.unwrap().contains("assumed-role/web/"), "{}", daemon.log());
    assert!(listed().contains("9169"), "{command:?}: {}", listed());
    let log = daemon.log();
    // What it says of pods on the node's network holds in any container that is given no cgroups.
    let troubles = log.lines().filter(|line| line.contains("ERROR") || line.contains("WARN"));
    assert!(troubles.clone().all(|line| line.contains("pods on the node's network")), "{log}");
    daemon.kill();

    let remove = Container::new(sandbox, &["rules", "remove"], capabilities).command(sandbox).output().unwrap();
    assert!(remove.status.success(), "{}", String::from_utf8_lossy(&remove.stderr));
    assert!(!listed().contains("9169"), "{}", listed());
    assert!(sdk(sandbox, pod).arn.unwrap().contains("assumed-role/node/"), "as if we had not been there");
}

#[test]
#[ignore = "needs the image's root: make test-image"]
fn a_container_of_it_serves_credentials_by_nftables() {
    let (sandbox, web) = with_a_pod();
    let listed = ["nft", "list", "table", "inet", "kube2irsa"];
    does_the_main_job(&sandbox, &web, &[], &["CAP_NET_ADMIN"], &listed);
}

#[test]
#[ignore = "needs the image's root: make test-image"]
fn a_container_of_it_serves_credentials_by_iptables_of_the_nftables_variant() {
    let (sandbox, web) = with_a_pod();
    let listed = ["iptables-nft", "-t", "nat", "-S"];
    does_the_main_job(&sandbox, &web, &["--intercept", "iptables"], &["CAP_NET_ADMIN"], &listed);
}

#[test]
#[ignore = "needs the image's root: make test-image"]
fn a_container_of_it_serves_credentials_by_iptables_of_the_legacy_variant() {
    let (sandbox, web) = with_a_pod();
    // As kubelet marks the tables that a node's programs use.
    let hint = ["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"];
    assert!(sandbox.node().command("iptables-legacy").args(hint).status().unwrap().success());
    let listed = ["iptables-legacy", "-t", "nat", "-S"];
    does_the_main_job(&sandbox, &web, &["--intercept", "iptables"], &["CAP_NET_ADMIN", "CAP_NET_RAW"], &listed);
}
