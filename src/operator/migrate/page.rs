//! `PLAN.md`: the plan as a person carries it out, step by step, each with a way back. Pure.

use std::{collections::BTreeSet, fmt::Write as _};

use serde_json::{Value, json};

use super::{
    files::{ACCOUNTS, BINDINGS, NAMESPACES, NEW_ACCOUNTS, of_pods, patch_file, trust_file},
    plan::{OldDaemon, Plan, Remark},
};

/// The label of nodes whose pods kube2irsa serves.
pub(super) const SERVED_BY_US: &str = "kube2irsa.io/serves";
/// The label of nodes that the old daemon leaves: a second one, so that it goes only when kube2irsa is there.
const LEFT_BY_IT: &str = "kube2irsa.io/serves-alone";
/// The chart, which is not among the plan's files.
const CHART: &str = "CHART=…   # daemonset/chart of kube2irsa's repository";
/// What IAM takes for a policy's name.
const LONGEST_POLICY_NAME: usize = 128;

pub(super) fn page(plan: &Plan) -> String {
    let mut page = String::new();
    // A String takes all that is written.
    let _ = write(&mut page, plan);
    page
}

fn write(page: &mut String, plan: &Plan) -> std::fmt::Result {
    let from = plan.from;
    let new = plan.service_accounts.iter().filter(|change| change.in_place_of.is_some()).count();
    writeln!(page, "# From {from} to kube2irsa\n")?;
    writeln!(
        page,
        "Nothing has been changed yet. Workloads that have a role today: {}. ServiceAccounts: {} annotated, {new} new. Workloads that \
         get another ServiceAccount: {}. Roles that have to trust the cluster's issuer: {}.\n",
        plan.pods.iter().filter(|pods| pods.before.is_some()).count(),
        plan.service_accounts.len() - new,
        plan.workloads.len(),
        plan.roles.len(),
    )?;
    remarks(page, "Left to you", "None of this is carried over by itself.", &plan.left)?;
    remarks(page, "To know", "This is carried over, and is not quite as it reads.", &plan.notes)?;
    writeln!(
        page,
        "All commands are for a shell in this folder. Who keeps manifests in a repository puts into them what steps 2, 3 and 7 \
         apply and patch, and lets that carry it out. Until step 5 {from} serves all pods by their annotations, whatever \
         ServiceAccount they have: each of the steps before can wait.\n"
    )?;
    before(page, plan)?;
    aws(page, plan)?;
    in_the_cluster(page, plan)?;
    workloads(page, plan)?;
    look(page, from)?;
    nodes(page, plan)?;
    end(page, plan)?;
    cleanup(page, plan)?;
    pods(page, plan)
}

fn remarks(page: &mut String, title: &str, what: &str, remarks: &[Remark]) -> std::fmt::Result {
    if remarks.is_empty() {
        return Ok(());
    }
    writeln!(page, "## {title}\n\n{what}\n")?;
    for Remark { about, what, todo } in remarks {
        writeln!(page, "- **{about}**: {what}.\n  What to do: {todo}.")?;
    }
    writeln!(page)
}

fn commands(page: &mut String, commands: impl IntoIterator<Item = String>) -> std::fmt::Result {
    for command in commands {
        writeln!(page, "    {command}")?;
    }
    writeln!(page)
}

fn back(page: &mut String, lines: impl IntoIterator<Item = String>) -> std::fmt::Result {
    writeln!(page, "The way back:\n")?;
    commands(page, lines)
}

/// Where an old daemon's own object is kept.
fn kept(daemon: &OldDaemon) -> String {
    format!("old-{}-{}-{}.json", daemon.kind.to_lowercase(), daemon.namespace, daemon.name)
}

fn before(page: &mut String, plan: &Plan) -> std::fmt::Result {
    // Of the server's making, and refused in what is made anew.
    const OF_THE_SERVER: &str = "del(.status, .metadata[\"resourceVersion\", \"uid\", \"generation\", \
                                 \"creationTimestamp\", \"managedFields\"])";
    let daemons = plan.daemons.iter().map(|it| {
        let (kind, file) = (it.kind.to_lowercase(), kept(it));
        format!("kubectl get {kind} -n {} {} -o json | jq '{OF_THE_SERVER}' > {file}", it.namespace, it.name)
    });
    writeln!(page, "## 0. Keep what is there\n")?;
    commands(page, std::iter::once(
        "kubectl get namespaces,serviceaccounts,deployments,statefulsets,daemonsets,cronjobs,rolebindings,clusterrolebindings \
         --all-namespaces -o yaml > before.yaml"
            .to_owned(),
    ).chain(daemons))
}

fn aws(page: &mut String, plan: &Plan) -> std::fmt::Result {
    writeln!(page, "## 1. Let the roles trust the cluster's issuer\n")?;
    if plan.roles.is_empty() {
        return writeln!(page, "No role is asked for.\n");
    }
    let accounts = plan.roles.iter().filter_map(|change| change.role.split(':').nth(4));
    let accounts = accounts.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
    writeln!(
        page,
        "Each account needs an IAM OIDC provider for the issuer (docs/install-eks.md, docs/install-off-eks.md). The statements of \
         1-aws/ are added to what each role trusts already, by which {} goes on. Once for each account, with its credentials \
         ({accounts}):\n",
        plan.from
    )?;
    let role = "  role=${file%.trust.json}; name=${role##*/}";
    commands(
        page,
        [
            "account=…",
            "for file in 1-aws/$account/*.trust.json; do",
            role,
            "  test -s \"$role.before.json\" ||",
            "    { aws iam get-role --output json --role-name \"$name\" --query Role.AssumeRolePolicyDocument > \"$role.tmp\" &&",
            "      test -s \"$role.tmp\" && mv \"$role.tmp\" \"$role.before.json\"; } ||",
            "    { echo \"NOT DONE: $name\"; continue; }",
            "  jq -s '.[0].Statement = ([.[].Statement | if type == \"array\" then .[] else . end] | unique) | .[0]' \\",
            "    \"$role.before.json\" \"$file\" > \"$role.both.json\" &&",
            "    aws iam update-assume-role-policy --role-name \"$name\" --policy-document \"file://$role.both.json\" ||",
            "    echo \"NOT DONE: $name\"",
            "done",
        ]
        .map(str::to_owned),
    )?;
    writeln!(
        page,
        "Go on only when it says of no role NOT DONE; it can be run again. Old and new statements together may be longer than the \
         2,048 characters that IAM takes, which is a NOT DONE too: have the quota \"Role trust policy length\" raised.\n"
    )?;
    let policy = targets_policy(&plan.issuer);
    let hubs = plan.roles.iter().filter(|change| change.permissions.is_some());
    let name = |arn: &str| arn.rsplit('/').next().unwrap_or_default().to_owned();
    let hubs =
        hubs.map(|change| (name(&change.role), super::files::permissions_file(&change.role))).collect::<Vec<_>>();
    if !hubs.is_empty() {
        writeln!(page, "By way of these, others are had:\n")?;
        let put = |(role, file): &(String, String)| {
            format!("aws iam put-role-policy --role-name {role} --policy-name {policy} --policy-document file://{file}")
        };
        commands(page, hubs.iter().map(put))?;
    }
    let undo = [
        "for file in 1-aws/$account/*.trust.json; do",
        role,
        "  test -s \"$role.before.json\" || continue   # nothing was changed",
        "  aws iam update-assume-role-policy --role-name \"$name\" --policy-document \"file://$role.before.json\" ||",
        "    echo \"NOT DONE: $name\"",
        "done",
    ]
    .map(str::to_owned);
    let unput =
        hubs.iter().map(|(role, _)| format!("aws iam delete-role-policy --role-name {role} --policy-name {policy}"));
    back(page, undo.into_iter().chain(unput))
}

/// A hub's policy, of this cluster alone: another one's may be on the same role.
fn targets_policy(issuer: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    "kube2irsa-targets-".chars().chain(issuer.chars().map(letter)).take(LONGEST_POLICY_NAME).collect()
}

fn in_the_cluster(page: &mut String, plan: &Plan) -> std::fmt::Result {
    writeln!(page, "## 2. Annotate and make ServiceAccounts\n")?;
    let has_new = plan.service_accounts.iter().any(|change| change.in_place_of.is_some());
    let there = plan.service_accounts.iter().filter(|change| change.in_place_of.is_none()).collect::<Vec<_>>();
    let all = [
        (NEW_ACCOUNTS, has_new),
        (BINDINGS, !plan.bindings.is_empty()),
        (ACCOUNTS, !there.is_empty()),
        (NAMESPACES, !plan.namespaces.is_empty()),
    ];
    let files = all.iter().filter(|(_, is_there)| *is_there).map(|(file, _)| *file).collect::<Vec<_>>();
    if files.is_empty() {
        return writeln!(page, "There is nothing to do.\n");
    }
    writeln!(
        page,
        "{} reads none of this. A new ServiceAccount has the old one's imagePullSecrets, and bindings of its own to all that binds \
         the old one by name (groups hold for it too). What else names the old one has to name it as well: policies of admission, \
         OpenShift's SecurityContextConstraints, Vault's roles. Where the webhook of EKS runs, pods that are made from now on get a \
         token for their ServiceAccount's role, and have the same role by it.\n",
        plan.from
    )?;
    for change in plan.service_accounts.iter().filter(|change| change.in_place_of.is_some()) {
        let old = change.in_place_of.as_deref().unwrap_or_default();
        writeln!(page, "- {}/{} in the place of {old}", change.namespace, change.name)?;
    }
    if has_new {
        writeln!(page)?;
    }
    commands(
        page,
        files.iter().map(|file| format!("kubectl apply --server-side --field-manager=kube2irsa-migrate -f {file}")),
    )?;
    let made = [(BINDINGS, !plan.bindings.is_empty()), (NEW_ACCOUNTS, has_new)];
    let made = made.into_iter().filter(|(_, is_there)| *is_there).map(|(file, _)| format!("kubectl delete -f {file}"));
    let unannotate = there.iter().map(|change| {
        let keys = change.annotations.keys().map(|key| format!(" {key}-")).collect::<String>();
        format!("kubectl annotate serviceaccount -n {} {}{keys}", change.namespace, change.name)
    });
    let namespaces = plan
        .namespaces
        .iter()
        .map(|change| format!("kubectl annotate namespace {} kube2irsa.io/permitted-roles-", change.name));
    back(page, made.chain(unannotate).chain(namespaces))
}

fn workloads(page: &mut String, plan: &Plan) -> std::fmt::Result {
    writeln!(page, "## 3. Give workloads their new ServiceAccounts\n")?;
    if plan.workloads.is_empty() {
        return writeln!(page, "No workload needs another one.\n");
    }
    writeln!(
        page,
        "Their pods are made anew (those of a ReplicaSet or a ReplicationController, and of what is updated OnDelete, when they \
         are deleted), and keep their roles by {}.\n",
        plan.from
    )?;
    let target = |kind: &str, namespace: &str, name: &str| {
        format!("kubectl patch {} -n {namespace} {name}", kind.to_lowercase())
    };
    commands(
        page,
        plan.workloads.iter().map(|it| {
            let file = patch_file("3-workloads", &it.kind, &it.namespace, &it.name);
            format!("{} --patch-file {file}", target(&it.kind, &it.namespace, &it.name))
        }),
    )?;
    back(
        page,
        plan.workloads.iter().map(|it| {
            let old = of_pods(&it.kind, json!({ "spec": { "serviceAccountName": it.account_before } }));
            format!("{} -p '{old}'", target(&it.kind, &it.namespace, &it.name))
        }),
    )
}

fn look(page: &mut String, from: &str) -> std::fmt::Result {
    writeln!(
        page,
        "## 4. Look before you leap\n\nkube2irsa beside {from}, on some nodes, where it only looks (`mode: observe` in kube2irsa.yaml; \
         add your registry). Its log names each pod that asks, and the role that it would get:\n"
    )?;
    commands(
        page,
        [
            CHART.to_owned(),
            format!("kubectl label node NODE {SERVED_BY_US}=true"),
            "helm upgrade --install kube2irsa \"$CHART\" -n kube2irsa --create-namespace -f kube2irsa.yaml".to_owned(),
            "kubectl logs -n kube2irsa daemonset/kube2irsa".to_owned(),
        ],
    )?;
    writeln!(
        page,
        "Pods that read more than credentials from the metadata service need `flags.allow-path`: {from} may have let them.\n"
    )?;
    back(
        page,
        ["helm uninstall -n kube2irsa kube2irsa".to_owned(), format!("kubectl label nodes --all {SERVED_BY_US}-")],
    )
}

/// Keeps the old daemon off the nodes that we serve alone. Its pods elsewhere are not made anew for it: with each that ends, a rule
/// of its node's may go (kiam's `--iptables-remove`), and pods reach the node's role until the next one is there.
fn away(daemon: &OldDaemon) -> String {
    let term = json!({ "matchExpressions": [{ "key": LEFT_BY_IT, "operator": "DoesNotExist" }] });
    let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [term] } } });
    let patch: Value = json!({ "spec": {
        "updateStrategy": { "type": "OnDelete", "rollingUpdate": null },
        "template": { "spec": { "affinity": affinity } },
    } });
    format!("kubectl patch daemonset -n {} {} -p '{patch}'", daemon.namespace, daemon.name)
}

fn nodes(page: &mut String, plan: &Plan) -> std::fmt::Result {
    let from = plan.from;
    writeln!(
        page,
        "## 5. Node by node\n\nA node goes over with two labels: by the first kube2irsa comes, by the second {from} leaves. While \
         both are there, kube2irsa serves: its redirect stands before that of {from}, and its guard keeps pods from the node's role \
         whatever {from} takes away as it ends. At first no node has a label, and nothing restarts: the patch sets \
         `updateStrategy` to OnDelete too. (If {from} has an affinity of its own, put the term into it instead.)\n"
    )?;
    let agents = plan.daemons.iter().filter(|daemon| daemon.serves_pods).map(away);
    commands(
        page,
        std::iter::once(format!("kubectl label nodes --all {SERVED_BY_US}- {LEFT_BY_IT}-")).chain(agents).chain([
            "sed -i 's/^mode: .*/mode: run/' kube2irsa.yaml".to_owned(),
            CHART.to_owned(),
            "helm upgrade --install kube2irsa \"$CHART\" -n kube2irsa -f kube2irsa.yaml".to_owned(),
        ]),
    )?;
    writeln!(page, "Then for each node, while none of its pods needs a role:\n")?;
    commands(
        page,
        [
            "kubectl drain NODE --ignore-daemonsets".to_owned(),
            format!("kubectl label node NODE {SERVED_BY_US}=true"),
            "until kubectl -n kube2irsa wait --for=condition=Ready pod -l app.kubernetes.io/name=kube2irsa \\"
                .to_owned(),
            "  --field-selector spec.nodeName=NODE --timeout=120s; do sleep 2; done".to_owned(),
            format!("kubectl label node NODE {LEFT_BY_IT}=true"),
            "kubectl uncordon NODE".to_owned(),
        ],
    )?;
    writeln!(
        page,
        "Before the last: {from} may leave its rule on the node (`iptables -t nat -S PREROUTING | grep 169.254.169.254` shows it; the \
         same with -D takes it out), and `kube2irsa rules check` in the daemon's container says whether something is in the way. What \
         each pod gets, or why nothing: `kube2irsa explain NAMESPACE/POD` there.\n\n\
         Instead of step 3, or for what could not be patched, kube2irsa can read the old annotations itself for a while: \
         `legacy-annotations` and `legacy-source` (`web-identity` or `assume-role`) under `flags` (docs/legacy.md).\n"
    )?;
    back(
        page,
        [
            CHART.to_owned(),
            format!("kubectl drain -l {SERVED_BY_US}=true --ignore-daemonsets"),
            format!("kubectl label nodes --all {LEFT_BY_IT}-"),
            format!(
                "kubectl get pods --all-namespaces -o wide | grep {from}   # until one is Ready on each of these nodes"
            ),
            "helm upgrade kube2irsa \"$CHART\" -n kube2irsa -f kube2irsa.yaml --set mode=remove".to_owned(),
            "kubectl rollout status -n kube2irsa daemonset/kube2irsa".to_owned(),
            format!("kubectl label nodes --all {SERVED_BY_US}-"),
            "kubectl uncordon NODE   # each that was drained".to_owned(),
        ],
    )?;
    writeln!(
        page,
        "In this order, so that {from} is there with its rule before kube2irsa's are taken away: in between, pods there would reach \
         the node's role.\n"
    )
}

fn end(page: &mut String, plan: &Plan) -> std::fmt::Result {
    writeln!(
        page,
        "## 6. The end of {}\n\nWhen all nodes have both labels, take `nodeSelector` out of kube2irsa.yaml, so that new nodes are \
         served too:\n",
        plan.from
    )?;
    let delete = plan.daemons.iter().map(|it| {
        format!("test -s {} && kubectl delete {} -n {} {}", kept(it), it.kind.to_lowercase(), it.namespace, it.name)
    });
    commands(
        page,
        [CHART.to_owned(), "helm upgrade kube2irsa \"$CHART\" -n kube2irsa -f kube2irsa.yaml".to_owned()]
            .into_iter()
            .chain(delete),
    )?;
    back(page, plan.daemons.iter().map(|it| format!("kubectl apply -f {}", kept(it))))?;
    writeln!(
        page,
        "Then step 5's way back: until that is done, {} and kube2irsa are on the nodes together, and kube2irsa serves.\n",
        plan.from
    )
}

fn cleanup(page: &mut String, plan: &Plan) -> std::fmt::Result {
    writeln!(
        page,
        "## 7. Take away what nobody reads\n\nLast, for it is what {} would go by if it came back. Pods of patched workloads are made \
         anew.\n",
        plan.from
    )?;
    commands(
        page,
        plan.cleanup.iter().map(|it| {
            let namespace = if it.namespace.is_empty() { String::new() } else { format!("-n {} ", it.namespace) };
            let file = patch_file("7-cleanup", &it.kind, &it.namespace, &it.name);
            format!("kubectl patch {} {namespace}{} --patch-file {file}", it.kind.to_lowercase(), it.name)
        }),
    )?;
    if let Some(change) = plan.roles.first() {
        writeln!(
            page,
            "And in AWS: the right of the nodes' role to assume others, and from each role's trust policy the statement that names \
             that role (unless another cluster still needs it). `{}` and the like alone are enough for this cluster.\n",
            trust_file(&change.role)
        )?;
    }
    back(
        page,
        plan.cleanup.iter().map(|it| {
            let namespace = if it.namespace.is_empty() { String::new() } else { format!("-n {} ", it.namespace) };
            let old = of_pods(&it.kind, json!({ "metadata": { "annotations": it.annotations } }))
                .to_string()
                .replace('\'', "'\\''");
            format!("kubectl patch {} {namespace}{} -p '{old}'", it.kind.to_lowercase(), it.name)
        }),
    )
}

fn pods(page: &mut String, plan: &Plan) -> std::fmt::Result {
    writeln!(
        page,
        "## Which role each has\n\n| | ServiceAccount | by {} | by kube2irsa |\n| --- | --- | --- | --- |",
        plan.from
    )?;
    let role = |role: &Option<String>| role.clone().unwrap_or_else(|| "none".to_owned());
    for pods in &plan.pods {
        let (before, after) = (role(&pods.before), role(&pods.after));
        let after = if before == after { "the same".to_owned() } else { format!("**{after}**") };
        writeln!(page, "| {} | {} | {before} | {after} |", pods.workload, pods.account)?;
    }
    Ok(())
}
