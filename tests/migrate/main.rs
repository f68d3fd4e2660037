//! The way from kube2iam and kiam: made clusters of theirs are planned, carried out in the sandbox, and each pod has the role that
//! it had, as a rule of its own says ([`reference`]) and as STS answers.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "../support/apiserver.rs"]
mod apiserver;
mod cluster;
mod reference;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use apiserver::ApiServer;
use cluster::{Objects, documents, files, fixture};
use reference::{Limits, Setup, annotations, role};
use sandbox::{
    sandbox::{AUDIENCE, Sandbox},
    sts::Role,
};
use serde_json::{Value, json};
use support::{Daemon, daemon_binary, eventually, role_status, sandbox, sdk};
use tempfile::TempDir;

const ISSUER: &str = "https://oidc.example.com/cluster";
const BASE: &str = "arn:aws:iam::111122223333:role/";

/// What the command says, its exit code, and the folder that it wrote to.
struct Planned {
    code: Option<i32>,
    said: String,
    errors: String,
    folder: TempDir,
}

impl Planned {
    fn directory(&self) -> PathBuf {
        self.folder.path().join("plan")
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.directory().join(file)).unwrap_or_else(|error| panic!("{file}: {error}\n{}", self.said))
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.said).unwrap()
    }
}

fn migrate(from: &str, manifests: &[PathBuf], issuer: &str, rest: &[&str]) -> Planned {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new(daemon_binary());
    command.args(["migrate", from, "--issuer", issuer, "--output"]).arg(folder.path().join("plan"));
    for path in manifests {
        command.arg("--manifests").arg(path);
    }
    let output = command.args(rest).env_clear().output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Planned { code: output.status.code(), said: text(output.stdout), errors: text(output.stderr), folder }
}

/// Manifests in a folder of their own.
fn written(text: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("all.yaml");
    fs::write(&file, text).unwrap();
    (folder, file)
}

/// Roles as the plan's files have AWS make them; a hub is one that has permissions.
fn put_roles(sandbox: &Sandbox, plan: &Path) -> BTreeSet<String> {
    let roles = files(plan).into_iter().filter(|(name, _)| name.ends_with(".trust.json"));
    let names = |arn: &str, account: &str, name: &str| {
        arn.split(':').nth(4) == Some(account) && arn.ends_with(&format!("/{name}"))
    };
    let plan_json = fs::read_to_string(plan.join("../plan.json")).unwrap();
    let planned = serde_json::from_str::<Value>(&plan_json).unwrap();
    let planned = planned["roles"].as_array().unwrap().clone();
    let mut put = BTreeSet::new();
    for (file, path) in roles {
        let (account, name) = file.trim_start_matches("1-aws/").split_once('/').unwrap();
        let name = name.trim_end_matches(".trust.json");
        let arn =
            planned.iter().map(|role| role["role"].as_str().unwrap()).find(|arn| names(arn, account, name)).unwrap();
        let read = |path: &Path| serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap();
        sandbox.cloud.sts.put_oidc_provider(account, sandbox.cloud.issuer.url(), &[AUDIENCE]).unwrap();
        let permissions = path.with_file_name(format!("{name}.permissions.json"));
        let permissions = permissions.exists().then(|| read(&permissions));
        // As the old daemon needs it for sessions of that length.
        let max_session_duration = Duration::from_hours(2);
        let role = Role { permissions, max_session_duration, ..Role::new(arn, read(&path)) };
        sandbox.cloud.sts.put_role_with(&role).unwrap_or_else(|error| panic!("{arn}: {error}"));
        put.insert(arn.to_owned());
    }
    put
}

/// Plans a cluster, carries the plan out, and asks each pod. `apart` are those of which the plan says that no patch can move them.
fn carried_over(from: &str, set: &str, setup: &Setup, flags: &[&str], apart: &[&str]) {
    let sandbox = sandbox();
    let manifests = [fixture(set)];
    let planned = migrate(from, &manifests, sandbox.cloud.issuer.url(), &[&["-o", "json"], flags].concat());
    assert_eq!(planned.code, Some(1), "{}", planned.errors);
    let plan = planned.json();
    fs::write(planned.folder.path().join("plan.json"), &planned.said).unwrap();
    let before = Objects::of(&manifests);
    let mut after = before.clone();
    after.carry_out(&planned.directory(), false);

    let put = put_roles(&sandbox, &planned.directory());
    for ((kind, namespace, name), object) in &after.0 {
        let annotations = annotations(object);
        let pairs = annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect::<Vec<_>>();
        match kind.as_str() {
            "Namespace" => sandbox.cloud.kubernetes.create_namespace(name, &pairs),
            "ServiceAccount" => sandbox.cloud.kubernetes.apply_service_account(namespace, name, &pairs),
            _ => {}
        }
    }
    let values = documents(&planned.directory().join("kube2irsa.yaml")).remove(0);
    let values = values["flags"].as_object().unwrap().clone();
    let values = values.iter().map(|(name, value)| format!("--{name}={}", value.as_str().unwrap())).collect::<Vec<_>>();
    let _daemon = Daemon::ready(&sandbox, &values.iter().map(String::as_str).collect::<Vec<_>>());

    let (mut with_role, mut without) = (0, 0);
    for ((kind, namespace, name), pod_annotations, _, is_on_node) in before.workloads() {
        let key = (kind.clone(), namespace.clone(), name.clone());
        let (_, _, account, _) = after.workloads().into_iter().find(|it| it.0 == key).unwrap();
        let about = format!("{kind} {namespace}/{name}");
        if is_on_node {
            continue;
        }
        let had = role(setup, &pod_annotations, &before.annotations("Namespace", "", &namespace));
        let told = plan["pods"].as_array().unwrap().iter().find(|pods| pods["workload"] == about.as_str()).unwrap();
        assert_eq!(told["before"], json!(had), "{about}: the plan says so too");
        if apart.contains(&about.as_str()) {
            let left = plan["left"].as_array().unwrap();
            assert!(left.iter().any(|it| it["about"] == about.as_str()), "{about} is not left to anybody: {left:?}");
            assert_ne!(told["before"], told["after"], "{about}");
            continue;
        }
        let pod = sandbox.add_pod(&namespace, &format!("{}-{name}", kind.to_lowercase()), &account).unwrap();
        match &had {
            None => {
                without += 1;
                // Until its namespace is known, who brings no session token is told to.
                eventually(&format!("{about} has none"), || [403, 404].contains(&role_status(&pod)));
                assert_eq!(sdk(&sandbox, &pod).arn, None, "{about}");
            }
            Some(role) => {
                with_role += 1;
                let report = sdk(&sandbox, &pod);
                let arn =
                    report.arn.unwrap_or_else(|| panic!("{about}: {:?} {}", report.error, planned.text("PLAN.md")));
                let (of, name) = (role.split(':').nth(4).unwrap(), role.rsplit('/').next().unwrap());
                assert!(arn.starts_with(&format!("arn:aws:sts::{of}:assumed-role/{name}/")), "{about}: {role}: {arn}");
                assert!(put.contains(role), "{role}");
            }
        }
        assert_eq!(told["after"], json!(had), "{about}: the plan says so too");
    }
    assert!(with_role > 4 && without > 1, "{with_role} {without}");
    let calls = sandbox.cloud.sts.calls();
    let refused = calls.iter().filter(|call| call.outcome != "Success").collect::<Vec<_>>();
    assert!(refused.is_empty(), "{refused:?}");

    // Once more, of what has been carried out: there is nothing to do.
    let (_folder, file) = written(&after.to_json());
    let again = migrate(from, &[file], sandbox.cloud.issuer.url(), &[&["-o", "json"], flags].concat()).json();
    let undone = |plan: &Value, of: &str| plan[of].as_array().unwrap().clone();
    assert_eq!(undone(&again, "workloads"), [] as [Value; 0]);
    assert_eq!(undone(&again, "bindings"), [] as [Value; 0]);
    for of in ["namespaces", "roles"] {
        assert_eq!(undone(&again, of), undone(&plan, of));
    }
}

#[test]
fn with_kube2iams_globs_each_pod_has_the_role_that_it_had() {
    let setup = Setup { base: BASE, default: None, role_key: "iam.amazonaws.com/role", limits: Limits::Globs };
    let hub = ["--hub-role-arn", "arn:aws:iam::111122223333:role/hub"];
    carried_over("from-kube2iam", "globs", &setup, &hub, &["Pod shop/by-hand"]);
}

#[test]
fn with_kube2iams_regexps_and_default_role_each_pod_has_the_role_that_it_had() {
    let base = "arn:aws:iam::111122223333:role/k8s/";
    let limits = Limits::Regexps("example.com/roles");
    let setup = Setup { base, default: Some("nothing-much"), role_key: "example.com/role", limits };
    carried_over("from-kube2iam", "regexps", &setup, &[], &[]);
}

#[test]
fn with_kiams_names_each_pod_has_the_role_that_it_had() {
    let setup = Setup { base: BASE, default: None, role_key: "iam.amazonaws.com/role", limits: Limits::Names };
    carried_over("from-kiam", "names", &setup, &["--hub-role-arn", "arn:aws:iam::111122223333:role/hub"], &[]);
}

#[test]
fn what_the_published_examples_leave_to_the_node_is_asked_for() {
    let kube2iam = [fixture("kube2iam")];
    let planned = migrate("from-kube2iam", &kube2iam, ISSUER, &[]);
    assert_eq!(planned.code, Some(64), "{}", planned.said);
    assert!(planned.errors.contains("--base-role-arn: kube2iam finds it out"), "{}", planned.errors);

    let planned = migrate("from-kube2iam", &kube2iam, ISSUER, &["--base-role-arn", BASE]);
    assert_eq!(planned.code, Some(1), "{}", planned.errors);
    assert!(planned.said.contains("the node's own role (--auto-discover-default-role)"), "{}", planned.said);
    let trust = planned.text("1-aws/111122223333/tidy-up.trust.json");
    assert!(trust.contains("system:serviceaccount:default:tidy-up"), "{trust}");
    let patch = documents(&planned.directory().join("3-workloads/default/cronjob-tidy-up.yaml"));
    let account = json!({ "spec": { "serviceAccountName": "tidy-up" } });
    assert_eq!(patch, [json!({ "spec": { "jobTemplate": { "spec": { "template": account } } } })]);

    let kiam = [fixture("kiam")];
    let planned = migrate("from-kiam", &kiam, ISSUER, &[]);
    assert_eq!(planned.code, Some(64), "{}", planned.said);
    let planned = migrate("from-kiam", &kiam, ISSUER, &["--base-role-arn", BASE]);
    assert_eq!((planned.code, planned.errors.as_str()), (Some(0), ""), "{}", planned.said);
    let namespaces = planned.text("2-cluster/namespaces.yaml");
    assert!(namespaces.contains("arn:*:iam::*:role/*"), "{namespaces}");
}

#[test]
fn a_new_service_account_may_do_what_the_old_one_may_and_pulls_its_images() {
    let hub = ["-o", "json", "--hub-role-arn", "arn:aws:iam::111122223333:role/hub"];
    let planned = migrate("from-kube2iam", &[fixture("globs")], ISSUER, &hub);
    let new = documents(&planned.directory().join("2-cluster/new-serviceaccounts.yaml"));
    let of_web = new.iter().filter(|account| account["metadata"]["name"].as_str().unwrap().starts_with("web-"));
    let of_web = of_web.collect::<Vec<_>>();
    let names = of_web.iter().map(|account| account["metadata"]["name"].as_str().unwrap()).collect::<BTreeSet<_>>();
    assert_eq!(names, BTreeSet::from(["web-reader", "web-shop-cart", "web-shop-front"]));
    assert!(of_web.iter().all(|account| account["imagePullSecrets"] == json!([{ "name": "registry" }])), "{of_web:?}");
    let bindings = documents(&planned.directory().join("2-cluster/bindings.yaml"));
    let bound = bindings.iter().map(|binding| {
        let subject = &binding["subjects"][0];
        (
            binding["kind"].as_str().unwrap(),
            binding["roleRef"]["name"].as_str().unwrap(),
            subject["name"].as_str().unwrap(),
        )
    });
    let bound = bound.collect::<BTreeSet<_>>();
    for name in names {
        assert!(bound.contains(&("RoleBinding", "reads", name)), "{name}: {bound:?}");
        assert!(bound.contains(&("ClusterRoleBinding", "nodes", name)), "{name}: {bound:?}");
    }
}

#[test]
fn nothing_is_wider_than_it_was_and_what_is_narrower_or_loose_is_said() {
    let planned = migrate("from-kube2iam", &[fixture("regexps")], ISSUER, &["-o", "json"]);
    let plan = planned.json();
    let of = |name: &str| {
        let all = plan["namespaces"].as_array().unwrap();
        all.iter().find(|namespace| namespace["name"] == name).unwrap()["permittedRoles"].clone()
    };
    let role = |name: &str| format!("arn:aws:iam::111122223333:role/k8s/{name}");
    assert_eq!(of("loose"), json!([role("app*"), role("nothing-much")]));
    assert_eq!(
        of("tight"),
        json!([role("app-blue"), role("app-green"), "arn:aws:iam::*:role/shared", role("nothing-much")])
    );
    assert_eq!(of("odd"), json!([role("app-1"), role("nothing-much")]), "those that pods have now");
    let left = plan["left"].as_array().unwrap().iter().map(|it| format!("{} {}", it["about"], it["what"]));
    let left = left.collect::<Vec<_>>();
    for (about, what) in [
        ("Namespace odd", "no glob equals"),
        ("Namespace loose", "admits more than it reads like"),
        ("Deployment tight/red", "does not permit"),
        ("the default role", "gives no pod a role of which its ServiceAccount says nothing"),
    ] {
        assert!(left.iter().any(|it| it.contains(about) && it.contains(what)), "{about}: {left:#?}");
    }
}

#[test]
fn what_cannot_be_carried_over_is_left_to_the_reader_in_words() {
    let planned = migrate("from-kube2iam", &[fixture("globs")], ISSUER, &[]);
    assert_eq!(planned.code, Some(1));
    for (about, what) in [
        ("Pod shop/by-hand", "a pod's ServiceAccount cannot be changed"),
        ("Deployment shop/greedy", "its namespace does not permit arn:aws:iam::111122223333:role/admin"),
        ("Deployment open/wrong", "is no role that there can be"),
        ("DaemonSet open/on-the-node", "it has the node's role"),
        ("CronJob shop/nightly", "sts:RoleSessionName"),
        ("AWS account 444455556666", "have to trust the cluster's issuer themselves; their external ids mean nothing"),
        ("Namespace broken", "it permits nothing today"),
    ] {
        let line = |line: &&str| line.starts_with("left to you: ") && line.contains(about) && line.contains(what);
        assert!(planned.said.lines().any(|it| line(&it)), "{about}: {}", planned.said);
        assert!(planned.text("PLAN.md").contains(about), "{about}");
    }
    // Longer than by default, as kube2iam has them: twice what it keeps them for.
    let accounts = documents(&planned.directory().join("2-cluster/serviceaccounts.yaml"));
    assert!(
        accounts.iter().all(|account| account["metadata"]["annotations"]["kube2irsa.io/session-duration"] == "5400")
    );
}

#[test]
fn the_page_shows_what_is_printed() {
    let planned = migrate("from-kiam", &[fixture("names")], ISSUER, &[]);
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/migrate.md")).unwrap();
    for line in planned.said.lines().filter(|line| !line.starts_with("written: ")) {
        assert!(page.contains(&format!("    {line}\n")), "{line}");
    }
    for line in planned.text("2-cluster/namespaces.yaml").lines() {
        assert!(page.contains(&format!("    {line}\n")), "{line}");
    }
    // Each file that the page tells of is there, and each that is there is told of in the plan.
    let plan = planned.text("PLAN.md");
    for file in files(&planned.directory())
        .into_keys()
        .filter(|file| file.starts_with("2-") || file.starts_with("3-") || file.starts_with("7-"))
    {
        assert!(plan.contains(&file), "{file}");
    }
}

#[test]
fn a_cluster_of_which_all_is_carried_over_leaves_nothing_to_anybody() {
    let (_folder, file) = written(
        "kind: DaemonSet\nmetadata: {name: kube2iam, namespace: kube-system}\nspec: {template: {spec: {hostNetwork: true, \
         containers: [{name: a, image: jtblin/kube2iam, args: ['--base-role-arn=arn:aws:iam::111122223333:role/']}]}}}\n---\nkind: \
         Deployment\nmetadata: {name: app, namespace: kube-system}\nspec: {template: {metadata: {annotations: \
         {iam.amazonaws.com/role: app}}, spec: {serviceAccountName: app, containers: []}}}\n",
    );
    let planned = migrate("from-kube2iam", &[file], ISSUER, &[]);
    assert_eq!((planned.code, planned.errors.as_str()), (Some(0), ""), "{}", planned.said);
    let values = documents(&planned.directory().join("kube2irsa.yaml")).remove(0);
    assert_eq!(
        values["admission"]["exemptServiceAccounts"],
        json!(["kube-system/app"]),
        "tokens are not given there otherwise"
    );
    assert_eq!(values["flags"], json!({ "host-network": "off" }), "namespaces limit nothing");
    assert!(planned.said.contains("to know: kube2irsa.yaml: admission.exemptServiceAccounts"), "{}", planned.said);
    assert!(planned.said.contains("tokens of kube-system/app"), "{}", planned.said);
}

#[test]
fn a_service_account_that_another_has_made_is_not_taken_for_a_new_one() {
    let account = |label: &str| {
        let (_folder, file) = written(&format!(
            "kind: ServiceAccount\nmetadata: {{name: reader, namespace: team, labels: {{{label}}}, annotations: \
             {{eks.amazonaws.com/role-arn: 'arn:aws:iam::111122223333:role/reader'}}}}\n---\nkind: ClusterRoleBinding\nmetadata: \
             {{name: all}}\nroleRef: {{kind: ClusterRole, name: cluster-admin}}\nsubjects: [{{kind: ServiceAccount, name: reader, \
             namespace: team}}]\n---\nkind: Deployment\nmetadata: {{name: controller, namespace: team}}\nspec: {{template: {{spec: \
             {{serviceAccountName: reader, containers: []}}}}}}\n---\nkind: Deployment\nmetadata: {{name: web, namespace: \
             team}}\nspec: {{template: {{metadata: {{annotations: {{iam.amazonaws.com/role: reader}}}}, spec: {{containers: \
             []}}}}}}\n---\nkind: Deployment\nmetadata: {{name: none, namespace: team}}\nspec: {{template: {{spec: {{containers: \
             []}}}}}}\n"
        ));
        let flags = ["-o", "json", "--daemon-flags", "--base-role-arn=arn:aws:iam::111122223333:role/"];
        let planned = migrate("from-kube2iam", &[file], ISSUER, &flags);
        let made = documents(&planned.directory().join("2-cluster/new-serviceaccounts.yaml")).remove(0);
        assert_eq!(made["metadata"]["labels"], json!({ "kube2irsa.io/made-by": "migrate" }));
        made["metadata"]["name"].clone()
    };
    assert_eq!(account(""), "reader-2");
    assert_eq!(account("kube2irsa.io/made-by: migrate"), "reader", "it was made by a plan");
}

/// The commands that a step of the page has in one of its blocks.
fn block(page: &str, step: &str, number: usize) -> String {
    let step = page.split("\n## ").find(|part| part.starts_with(step)).unwrap();
    let lines = step.lines().map(|line| line.strip_prefix("    "));
    let blocks = lines.collect::<Vec<_>>();
    let mut blocks = blocks.split(Option::is_none).filter(|block| !block.is_empty());
    blocks.nth(number).unwrap().iter().map(|line| format!("{}\n", line.unwrap())).collect()
}

#[test]
fn a_role_whose_trust_cannot_be_read_keeps_it() {
    let planned = migrate("from-kiam", &[fixture("names")], ISSUER, &[]);
    let (folder, page) = (planned.directory(), planned.text("PLAN.md"));
    let program = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::create_dir_all(folder.join("bin")).unwrap();
        let path = folder.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let run = |script: &str| {
        let path = format!("{}:/usr/bin:/bin", folder.join("bin").display());
        let script = script.replace("account=…", "account=444455556666");
        let script = format!("account=444455556666\n{script}");
        let mut shell = Command::new("bash");
        let output = shell.args(["-c", &script]).current_dir(&folder).env("PATH", path).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (there, back) = (block(&page, "1. ", 0), block(&page, "1. ", 1));
    // In place of a real one: both policies, one after the other.
    program("jq", "shift 2; cat \"$@\"\n");
    program("aws", "echo \"$*\" >> calls; exit 254\n");
    assert_eq!(run(&there), "NOT DONE: far\n");
    assert_eq!(run(&back), "", "nothing was changed, and nothing is put back");
    assert!(!fs::read_to_string(folder.join("calls")).unwrap().contains("update-assume-role-policy"));

    program("aws", "echo \"$*\" >> calls; case $2 in get-role) echo before;; esac\n");
    assert_eq!(run(&there), "", "once more, and now it answers");
    let both = fs::read_to_string(folder.join("1-aws/444455556666/far.both.json")).unwrap();
    assert_eq!(both, format!("before\n{}", planned.text("1-aws/444455556666/far.trust.json")));
    program("aws", "case $2 in update-*) exit 254;; esac\n");
    assert_eq!(run(&there), "NOT DONE: far\n", "too long, say");
    assert_eq!(run(&back), "NOT DONE: far\n");
}

#[test]
fn the_old_daemon_leaves_a_node_only_when_kube2irsa_is_ready_there() {
    let planned = migrate("from-kiam", &[fixture("names")], ISSUER, &[]);
    let page = planned.text("PLAN.md");
    let in_order = |script: &str, parts: &[&str]| {
        let places = parts.iter().map(|part| script.find(part).unwrap_or_else(|| panic!("{part}: {script}")));
        assert!(places.collect::<Vec<_>>().is_sorted(), "{script}");
    };
    let (first, second) = ("kube2irsa.io/serves=true", "kube2irsa.io/serves-alone=true");
    let patch = block(&page, "5. ", 0);
    in_order(&patch, &["\"kube2irsa.io/serves-alone\"", "\"rollingUpdate\":null,\"type\":\"OnDelete\""]);
    in_order(&block(&page, "5. ", 1), &["drain", first, "until kubectl -n kube2irsa wait", second, "uncordon"]);
    in_order(&block(&page, "5. ", 2), &["drain", "serves-alone-", "mode=remove", "serves-\n", "uncordon"]);
    // The old daemon comes back from its own object alone.
    let kept = block(&page, "0. ", 0);
    for line in block(&page, "6. ", 1).lines() {
        let file = line.strip_prefix("kubectl apply -f ").unwrap();
        assert!(file.starts_with("old-") && kept.contains(&format!("> {file}\n")), "{file}: {kept}");
    }
}

#[test]
fn clusters_that_have_one_hub_have_policies_of_their_own_there() {
    let hub = ["--hub-role-arn", "arn:aws:iam::111122223333:role/hub"];
    let page = migrate("from-kube2iam", &[fixture("globs")], ISSUER, &hub).text("PLAN.md");
    let put = page.matches("--policy-name kube2irsa-targets-oidc-example-com-cluster").count();
    assert_eq!(put, 2, "put, and deleted");
    let long = format!("https://oidc.example.com/{}", "x".repeat(200));
    let page = migrate("from-kube2iam", &[fixture("globs")], &long, &hub).text("PLAN.md");
    let name = page.split("--policy-name ").nth(1).unwrap().split_whitespace().next().unwrap();
    assert_eq!(name.len(), 128);
}

#[test]
fn an_annotation_that_is_there_already_is_not_overwritten() {
    let (_folder, file) = written(
        "kind: ServiceAccount\nmetadata: {name: app, namespace: a, annotations: {eks.amazonaws.com/role-arn: \
         'arn:aws:iam::111122223333:role/decided'}}\n---\nkind: Deployment\nmetadata: {name: app, namespace: a}\nspec: {template: \
         {metadata: {annotations: {iam.amazonaws.com/role: other}}, spec: {serviceAccountName: app, containers: []}}}\n",
    );
    let planned = migrate(
        "from-kube2iam",
        &[file],
        ISSUER,
        &["-o", "json", "--daemon-flags", "--base-role-arn=arn:aws:iam::111122223333:role/"],
    );
    let plan = planned.json();
    let accounts = plan["serviceAccounts"].as_array().unwrap();
    assert_eq!(
        accounts.iter().map(|it| (&it["name"], &it["inPlaceOf"])).collect::<Vec<_>>(),
        [(&json!("app-other"), &json!("app"))]
    );
    assert!(plan["left"].as_array().unwrap().iter().any(|it| it["about"] == "ServiceAccount a/app"), "{plan:#}");
}

#[test]
fn all_that_is_wrong_is_said_and_nothing_is_written() {
    let (folder, file) =
        written("kind: Deployment\nmetadata: {name: ../../x, namespace: a}\nspec: {template: {spec: {}}}\n");
    let says = |planned: &Planned, text: &str| {
        assert_eq!(planned.code, Some(64), "{} {}", planned.said, planned.errors);
        assert!(planned.errors.contains(text), "{text}: {}", planned.errors);
        assert!(!planned.directory().exists());
    };
    says(&migrate("from-kube2iam", std::slice::from_ref(&file), ISSUER, &[]), "\"../../x\" is no name");
    says(&migrate("from-kube2iam", &[folder.path().join("none")], ISSUER, &[]), "none: No such file");
    says(
        &migrate("from-kube2iam", std::slice::from_ref(&file), "http://x", &["--base-role-arn", "x"]),
        "--base-role-arn",
    );
    says(
        &migrate("from-kube2iam", std::slice::from_ref(&file), "http://x", &["--hub-role-arn", "x"]),
        "--hub-role-arn",
    );
    fs::write(&file, "kind: [\n").unwrap();
    says(&migrate("from-kube2iam", &[file], ISSUER, &[]), "all.yaml: ");
    let used = TempDir::new().unwrap();
    fs::write(used.path().join("x"), "").unwrap();
    let mut command = Command::new(daemon_binary());
    command
        .args(["migrate", "from-kiam", "--issuer", ISSUER, "--manifests"])
        .arg(fixture("names"))
        .arg("--output")
        .arg(used.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8(output.stderr).unwrap().contains("is not empty"));
}

/// The kinds of a plan in the API, by group and resource.
fn collection(kind: &str) -> (&'static str, &'static str) {
    match kind {
        "Namespace" => ("/api/v1", "namespaces"),
        "ServiceAccount" => ("/api/v1", "serviceaccounts"),
        "Pod" => ("/api/v1", "pods"),
        "ReplicationController" => ("/api/v1", "replicationcontrollers"),
        "Deployment" => ("/apis/apps/v1", "deployments"),
        "StatefulSet" => ("/apis/apps/v1", "statefulsets"),
        "DaemonSet" => ("/apis/apps/v1", "daemonsets"),
        "ReplicaSet" => ("/apis/apps/v1", "replicasets"),
        "Job" => ("/apis/batch/v1", "jobs"),
        "CronJob" => ("/apis/batch/v1", "cronjobs"),
        "RoleBinding" => ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
        "ClusterRoleBinding" => ("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
        kind => panic!("{kind}"),
    }
}

fn place(kind: &str, namespace: &str) -> String {
    let (group, resource) = collection(kind);
    if namespace.is_empty() {
        format!("{group}/{resource}")
    } else {
        format!("{group}/namespaces/{namespace}/{resource}")
    }
}

#[test]
#[ignore = "run by make test-apiserver"]
fn a_real_cluster_is_read_and_takes_what_is_written() {
    let sandbox = sandbox();
    let api = ApiServer::start(&sandbox);
    let objects = Objects::of(&[fixture("globs")]);
    for kinds in [&["Namespace"][..], &["ServiceAccount"]] {
        for (key, object) in objects.0.iter().filter(|(key, _)| kinds.contains(&key.0.as_str())) {
            let made = api.call(&sandbox, api.admin(), "POST", &place(&key.0, &key.1), object);
            assert!([201, 409].contains(&made.0), "{key:?}: {made:?}");
        }
    }
    for (key, object) in objects.0.iter().filter(|(key, _)| !["Namespace", "ServiceAccount"].contains(&key.0.as_str()))
    {
        api.create(&sandbox, &format!("{}?fieldValidation=Strict", place(&key.0, &key.1)), object);
    }
    let kubeconfig = sandbox.directory().join("admin");
    fs::write(&kubeconfig, api.kubeconfig(&sandbox, api.admin().token)).unwrap();
    let folder = sandbox.directory().join("plan");
    let live =
        sandbox.outside().command(daemon_binary()).args(["migrate", "from-kube2iam", "-o", "json", "--kubeconfig"]);
    let live = live.arg(&kubeconfig).arg("--output").arg(&folder).output().unwrap();
    let errors = String::from_utf8(live.stderr).unwrap();
    assert_eq!(live.status.code(), Some(1), "{errors}");
    let live = serde_json::from_slice::<Value>(&live.stdout).unwrap();
    let planned = migrate("from-kube2iam", &[fixture("globs")], &api.url, &["-o", "json"]).json();
    for part in ["serviceAccounts", "workloads", "bindings", "cleanup", "roles", "pods", "daemons"] {
        assert_eq!(live[part], planned[part], "the live cluster is as its manifests: {part}");
    }

    // Without the roles that they bind there would be nothing to look at: bindings of roles that are not there are accepted.
    for (name, file) in files(&folder) {
        if name.starts_with("2-cluster/") {
            for object in documents(&file) {
                let kind = object["kind"].as_str().unwrap();
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
                let path = format!("{}/{}", place(kind, namespace), object["metadata"]["name"].as_str().unwrap());
                for query in ["&dryRun=All", ""] {
                    let path = format!("{path}?fieldManager=kube2irsa-migrate&fieldValidation=Strict{query}");
                    api.apply_patch(&sandbox, &path, &object).accepted();
                }
            }
        }
    }
    let mut moved = BTreeMap::new();
    for part in ["workloads", "cleanup"] {
        for change in live[part].as_array().unwrap() {
            let text = |key: &str| change[key].as_str().unwrap().to_owned();
            let (kind, namespace, name) = (text("kind"), text("namespace"), text("name"));
            let step = if part == "workloads" { "3-workloads" } else { "7-cleanup" };
            let in_folder = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
            let file = folder.join(format!("{step}/{in_folder}{}-{name}.yaml", kind.to_lowercase()));
            let patch = documents(&file).remove(0);
            let path = format!("{}/{name}", place(&kind, &namespace));
            for query in ["dryRun=All&fieldValidation=Strict", "fieldValidation=Strict"] {
                let patched = api.strategic_patch(&sandbox, &format!("{path}?{query}"), &patch).accepted();
                if part == "workloads" {
                    let template =
                        patched.pointer("/spec/jobTemplate/spec/template").or(patched.pointer("/spec/template"));
                    assert_eq!(template.unwrap()["spec"]["serviceAccountName"], change["account"], "{path}");
                    moved.insert(path.clone(), patched);
                } else {
                    assert!(!patched.to_string().contains("\"iam.amazonaws.com/role\":"), "{path}: {patched}");
                }
            }
        }
    }
    assert!(moved.len() >= 4, "{:?}", moved.keys());
}
