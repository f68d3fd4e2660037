//! What a DaemonSet's controller and a node's kubelet and container runtime make of the chart's DaemonSet, on the
//! sandbox's node: the pod in the API, its token, its volumes, its environment, its capabilities.
//!
//! Not made: the image (the binary is that of this build, and the commands are the machine's), seccomp, cgroups.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sandbox::{
    network::{KUBERNETES_ADDRESS, NODE_ADDRESS},
    sandbox::{NODE, Sandbox},
};
use serde_json::{Value, json};

use crate::{
    server::{ApiServer, bound},
    support::{Daemon, chart::the, daemon_binary, without_but},
};

/// In its own mounts: gives the program a `/run` of its own, binds each `SOURCE TARGET ro|rw` up to `--` over it, makes all
/// else read-only, and goes on to the rest of its arguments.
const CONTAINER: &str = r#"
    set -e
    mount -t tmpfs -o mode=0755 container /run
    while [ "$1" != -- ]; do
        if [ -d "$1" ]; then mkdir -p "$2"; else mkdir -p "${2%/*}"; : > "$2"; fi
        mount --bind "$1" "$2"
        if [ "$3" = ro ]; then mount -o remount,bind,ro "$2"; fi
        shift 3
    done
    shift
    for at in / /dev /dev/shm /run /tmp /var /var/tmp; do
        if mountpoint -q "$at"; then mount -o remount,bind,ro "$at"; fi
    done
    exec "$@"
"#;

/// A pod of the DaemonSet whose container runs.
pub struct Running {
    pub daemon: Daemon,
    /// The token of its own, if it has one.
    pub token: Option<String>,
    container: Value,
    environment: BTreeMap<String, String>,
}

/// Runs a pod of the DaemonSet of these objects, which have been applied.
pub fn run(sandbox: &Sandbox, api: &ApiServer, objects: &[Value], name: &str) -> Running {
    let set = the(objects, "DaemonSet");
    let namespace = set["metadata"]["namespace"].as_str().unwrap();
    let template = &set["spec"]["template"];
    let mut pod = json!({"metadata": template["metadata"], "spec": template["spec"]});
    pod["metadata"]["name"] = json!(name);
    pod["spec"]["nodeName"] = json!(NODE);
    let pod = api.create(sandbox, &format!("/api/v1/namespaces/{namespace}/pods?fieldValidation=Strict"), &pod);
    let folder = sandbox.directory().join("pods").join(name);
    let (volumes, token) = volumes(sandbox, api, &pod, folder);
    let [container] = pod["spec"]["containers"].as_array().unwrap().as_slice() else { panic!("{pod}") };
    let environment = environment(&pod, container);

    let context = &container["securityContext"];
    assert_eq!((&context["runAsUser"], &context["privileged"]), (&json!(0), &json!(false)));
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(
        (&context["allowPrivilegeEscalation"], &context["readOnlyRootFilesystem"]),
        (&json!(false), &json!(true))
    );
    let added = words(&context["capabilities"]["add"]).map(str::to_lowercase).collect::<Vec<_>>();
    let bounding = without_but(&added.iter().map(String::as_str).collect::<Vec<_>>());

    let mut command = sandbox.on_host_network("sh").args(["-c", CONTAINER, "sh"]);
    for mount in container["volumeMounts"].as_array().unwrap() {
        let access = if mount["readOnly"] == true { "ro" } else { "rw" };
        let source = &volumes[mount["name"].as_str().unwrap()];
        command = command.arg(source).args([mount["mountPath"].as_str().unwrap(), access]);
    }
    command = command.args(["--", "setpriv", &bounding, "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]);
    command = command.arg(daemon_binary()).args(words(&container["args"]));
    for (name, value) in &environment {
        command = command.env(name, value);
    }
    Running { daemon: Daemon::of(sandbox, command), token, container: container.clone(), environment }
}

impl Running {
    /// Runs the command of a probe (`readinessProbe`, say) in the container: its exit code, and what it printed.
    pub fn probe(&self, probe: &str) -> (i32, String) {
        let process = self.daemon.process.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &process, "--mount", "--net", "--"]);
        command.args(words(&self.container[probe]["exec"]["command"])).env_clear().envs(&self.environment);
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }
}

fn words(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap())
}

fn environment(pod: &Value, container: &Value) -> BTreeMap<String, String> {
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", daemon_binary().parent().unwrap().display());
    let given = [
        ("PATH".to_owned(), path),
        ("KUBERNETES_SERVICE_HOST".to_owned(), KUBERNETES_ADDRESS.to_string()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), "443".to_owned()),
    ];
    let mut environment = BTreeMap::from(given);
    for variable in container["env"].as_array().unwrap() {
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("spec.nodeName") => pod["spec"]["nodeName"].as_str().unwrap().to_owned(),
            Some("status.hostIP") => NODE_ADDRESS.to_string(),
            Some(other) => panic!("{other}"),
            None => environment.iter().fold(variable["value"].as_str().unwrap().to_owned(), |value, (name, before)| {
                value.replace(&format!("$({name})"), before)
            }),
        };
        environment.insert(variable["name"].as_str().unwrap().to_owned(), value);
    }
    environment
}

/// Where each volume is, and the token that is in one of them.
fn volumes(
    sandbox: &Sandbox,
    api: &ApiServer,
    pod: &Value,
    folder: PathBuf,
) -> (BTreeMap<String, PathBuf>, Option<String>) {
    let mut token = None;
    let mut volumes = BTreeMap::new();
    for volume in pod["spec"]["volumes"].as_array().unwrap() {
        let name = volume["name"].as_str().unwrap();
        let own = folder.join(name);
        fs::create_dir_all(&own).unwrap();
        let place = if let Some(path) = volume["hostPath"]["path"].as_str() {
            match path {
                // Each sandbox's node has one of its own.
                "/run/kube2irsa" => {
                    fs::create_dir_all(sandbox.state_dir()).unwrap();
                    sandbox.state_dir()
                }
                path => path.into(),
            }
        } else if let Some(sources) = volume["projected"]["sources"].as_array() {
            for source in sources {
                project(sandbox, api, pod, source, &own, &mut token);
            }
            own
        } else {
            assert!(volume["emptyDir"].is_object(), "{volume}");
            own
        };
        volumes.insert(name.to_owned(), place);
    }
    (volumes, token)
}

fn project(sandbox: &Sandbox, api: &ApiServer, pod: &Value, source: &Value, folder: &Path, token: &mut Option<String>) {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap();
    let write = |file: &Value, text: &str| fs::write(folder.join(file.as_str().unwrap()), text).unwrap();
    if let Value::Object(wanted) = &source["serviceAccountToken"] {
        let [name, uid] = ["name", "uid"].map(|field| pod["metadata"][field].as_str().unwrap());
        let audiences = wanted.get("audience").map(|audience| json!([audience]));
        let request = json!({"spec": {
            "audiences": audiences,
            "expirationSeconds": wanted["expirationSeconds"],
            "boundObjectRef": bound(name, uid),
        }});
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap();
        let issued = api.issued(api.token(sandbox, api.admin(), (namespace, account), &request));
        write(&wanted["path"], &issued);
        *token = Some(issued);
    } else if source["configMap"]["name"] == "kube-root-ca.crt" {
        // A controller keeps it in each namespace.
        write(&source["configMap"]["items"][0]["path"], &api.ca_pem);
    } else {
        let item = &source["downwardAPI"]["items"][0];
        assert_eq!(item["fieldRef"]["fieldPath"], "metadata.namespace", "{source}");
        write(&item["path"], namespace);
    }
}
