//! All rules that are on the sandbox's node, and rules of others to put beside ours.

use std::{fs, path::PathBuf};

use sandbox::sandbox::Sandbox;

/// Prints each rule and each table that there is, of either variant, as the node's own commands do.
const EVERYTHING: &str = "
echo '# ip rule'; ip rule
echo '# ip -6 rule'; ip -6 rule
for command in iptables-nft-save ip6tables-nft-save iptables-legacy-save ip6tables-legacy-save; do
    echo \"# $command\"; $command | sed -e '/^#/d' -e 's/ \\[[0-9]*:[0-9]*\\]$//'
done
echo '# nft'; nft --stateless list ruleset
echo '# in use'; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names
";

/// As kube-proxy and kubelet put them into iptables.
pub const KUBE_PROXY: &str = "
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SERVICES -p tcp -m tcp --dport 444 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -m comment --comment \"kubernetes health check\" -j KUBE-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
";

/// As kube-proxy puts them into a table of its own, in its nftables mode.
pub const KUBE_PROXY_NFT: &str = "
table ip kube-proxy {
    map service-ips {
        type ipv4_addr . inet_proto . inet_service : verdict
    }
    chain services {
        ip daddr . meta l4proto . th dport vmap @service-ips
    }
    chain nat-prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        jump services
    }
    chain filter-input {
        type filter hook input priority -110; policy accept;
        ct state new jump services
    }
}
";

/// All that is in force on the node.
pub fn everything(sandbox: &Sandbox) -> String {
    sh(sandbox, EVERYTHING)
}

/// What a script says on the node; it must succeed.
pub fn sh(sandbox: &Sandbox, script: &str) -> String {
    let output = sandbox.node().command("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What `kube2irsa rules …` says on the node to standard output and standard error, and its exit code.
pub fn kube2irsa_rules(sandbox: &Sandbox, arguments: &[&str]) -> (Option<i32>, String, String) {
    kube2irsa(sandbox, &[&["rules"], arguments].concat())
}

/// What `kube2irsa …` says on the node to standard output and standard error, and its exit code.
pub fn kube2irsa(sandbox: &Sandbox, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = sandbox.node().command(super::daemon_binary()).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The kubeconfig of an operator who may do everything.
pub fn operators_kubeconfig(sandbox: &Sandbox) -> PathBuf {
    let kubernetes = &sandbox.cloud.kubernetes;
    let token = kubernetes.user_token("operator");
    let kubeconfig = kubernetes.kubeconfig(&sandbox.cloud.api_url(), sandbox.cloud.ca_pem(), &token);
    let file = sandbox.directory().join("operator");
    fs::write(&file, kubeconfig).unwrap();
    file
}

/// What `kube2irsa …` says on the node, AWS's names resolved, in an environment with nothing in it.
pub fn as_operator(sandbox: &Sandbox, arguments: &[&str]) -> (Option<i32>, String, String) {
    let command = sandbox.on_host_network(super::daemon_binary().to_str().unwrap()).args(arguments);
    let command = command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", "/nonexistent");
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// That the page shows what is printed; with KUBE2IRSA_WRITE_DOCS it is written there.
pub fn assert_shown(page: &str, test: &str, printed: &str) {
    let begin = format!("<!-- as it is printed: {test}; KUBE2IRSA_WRITE_DOCS=1 writes it -->\n```\n");
    let end = "```\n<!-- end of what is printed -->";
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let wanted = format!("{before}{begin}{printed}{end}{after}");
    if std::env::var_os("KUBE2IRSA_WRITE_DOCS").is_some() {
        fs::write(&file, wanted).unwrap();
    } else {
        assert!(text == wanted, "{page} shows something else: make docs\n{printed}");
    }
}
