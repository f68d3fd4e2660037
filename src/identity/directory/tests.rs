use std::{sync::mpsc, time::Duration};

use super::*;
use crate::identity::{
    annotations::{EKS_PREFIX, Keys, require_imdsv2},
    legacy::{Format, Limits, PodAnnotations, Source, Unlimited},
    policy::PermittedRoles,
};

const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const ROLE: &str = "arn:aws:iam::123456789012:role/web";
const OTHER_ROLE: &str = "arn:aws:iam::123456789012:role/other";

fn account(uid: &str, role_arn: Option<&str>) -> ServiceAccount {
    annotated(uid, &role_arn.map(|arn| ("eks.amazonaws.com/role-arn", arn)).into_iter().collect::<Vec<_>>())
}

fn annotated(uid: &str, annotations: &[(&str, &str)]) -> ServiceAccount {
    let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let (wishes, require_imdsv2) = (Keys::new(EKS_PREFIX).read(&annotations), require_imdsv2(&annotations));
    ServiceAccount { uid: uid.into(), wishes, require_imdsv2 }
}

fn permitting(globs: &str) -> Demands {
    Demands { permitted: Some(PermittedRoles::new(globs)), ..Demands::default() }
}

/// What the keeper of credentials was told: of each pod the roles that it is entitled to.
type Told = mpsc::Receiver<(PodUid, Vec<String>)>;

fn directory() -> (Directory, Told) {
    let (sender, entitled) = mpsc::channel();
    let told = move |uid: &PodUid, roles: &Roles| {
        drop(sender.send((uid.clone(), roles.grants().map(|grant| grant.role().to_string()).collect())));
    };
    (Directory::new(Binding::WhereFound, NamespacePolicy::Off, told, |_, _| {}).0, entitled)
}

fn role(directory: &Directory) -> Option<Role> {
    directory.identified(A).map(|caller| caller.roles.main.clone())
}

fn arn(directory: &Directory) -> Option<String> {
    match role(directory) {
        Some(Role::Granted(grant)) => Some(grant.role().to_string()),
        _ => None,
    }
}

#[test]
fn a_pod_is_identified_once_its_service_account_is_known_whichever_comes_first() {
    for accounts_first in [true, false] {
        let (directory, _) = directory();
        let namespace = Namespace::from("team-a");
        let accounts = || HashMap::from([("web".into(), account("sa", Some(ROLE)))]);
        if accounts_first {
            directory.reset_accounts(&namespace, accounts());
            directory.reset_pods(vec![Pod::sample("1", &[A])]);
        } else {
            directory.reset_pods(vec![Pod::sample("1", &[A])]);
            assert_eq!(role(&directory), None);
            assert!(!directory.synced());
            directory.reset_accounts(&namespace, accounts());
        }
        assert_eq!(arn(&directory).as_deref(), Some(ROLE));
        assert!(directory.synced());
    }
}

#[test]
fn a_changed_role_is_in_force_at_once_and_the_old_one_is_revoked() {
    let (directory, entitled) = directory();
    let namespace = Namespace::from("team-a");
    let told = |roles: &[&str]| Ok(("1".into(), roles.iter().map(|role| (*role).to_owned()).collect()));
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account("sa", Some(ROLE)))]));
    directory.reset_pods(vec![Pod::sample("1", &[A])]);
    assert_eq!(entitled.try_recv(), told(&[ROLE]));
    let Some(Role::Granted(old)) = role(&directory) else { panic!() };
    assert!(directory.entitled(&old));

    directory.apply_account(&namespace, "web".into(), account("sa", Some(OTHER_ROLE)));
    assert_eq!(arn(&directory).as_deref(), Some(OTHER_ROLE));
    assert_eq!(entitled.try_recv(), told(&[OTHER_ROLE]));
    assert!(!directory.entitled(&old));

    directory.apply_account(&namespace, "web".into(), account("recreated", Some(OTHER_ROLE)));
    assert_eq!(entitled.try_recv(), told(&[OTHER_ROLE]), "another service account of the same name");

    directory.delete_account(&namespace, &"web".into(), &"sa".into());
    assert_eq!(arn(&directory).as_deref(), Some(OTHER_ROLE), "a late delete of the first one");
    assert_eq!(entitled.try_recv(), Err(mpsc::TryRecvError::Empty));
    directory.delete_account(&namespace, &"web".into(), &"recreated".into());
    assert_eq!(role(&directory), None, "a pod without its service account is not served");
    assert_eq!(entitled.try_recv(), told(&[]));
}

#[test]
fn a_pod_is_entitled_before_it_has_an_address_and_until_its_end_but_not_on_the_nodes_network() {
    let (directory, entitled) = directory();
    directory.reset_accounts(&"team-a".into(), HashMap::from([("web".into(), account("sa", Some(ROLE)))]));
    directory.apply_pod(Pod { host_network: true, ..Pod::sample("host", &[A]) });
    directory.apply_pod(Pod { running: false, ..Pod::sample("1", &[]) });
    assert_eq!(entitled.try_recv(), Ok(("1".into(), vec![ROLE.to_owned()])));
    directory.apply_pod(Pod::sample("1", &[A]));
    let Some(Role::Granted(grant)) = role(&directory) else { panic!() };
    directory.apply_pod(Pod { terminating: true, ..Pod::sample("1", &[A]) });
    let Some(Role::Granted(same)) = role(&directory) else { panic!() };
    assert!(Arc::ptr_eq(&grant, &same), "nothing about it changed");
    assert_eq!(entitled.try_recv(), Err(mpsc::TryRecvError::Empty));

    directory.apply_pod(Pod { finished: true, ..Pod::sample("1", &[A]) });
    assert_eq!(entitled.try_recv(), Ok(("1".into(), vec![])));
    assert!(!directory.entitled(&grant));
    directory.delete_pod(&"1".into());
    assert_eq!(entitled.try_recv(), Err(mpsc::TryRecvError::Empty), "it was told already");

    directory.apply_pod(Pod::sample("2", &[]));
    assert_eq!(entitled.try_recv(), Ok(("2".into(), vec![ROLE.to_owned()])));
    directory.reset_pods(vec![]);
    assert_eq!(entitled.try_recv(), Ok(("2".into(), vec![])));
}

#[test]
fn an_empty_annotation_is_no_role_and_another_text_is_an_error() {
    let (directory, _) = directory();
    directory.apply_pod(Pod::sample("1", &[A]));
    for (text, none) in [(Some(""), true), (None, true), (Some("web"), false), (Some(" "), false)] {
        directory.reset_accounts(&"team-a".into(), HashMap::from([("web".into(), account("sa", text))]));
        let role = role(&directory).unwrap();
        assert_eq!(matches!(role, Role::None), none, "{text:?}");
        assert_eq!(matches!(role, Role::Invalid(_)), !none, "{text:?}");
    }
}

#[test]
fn the_namespaces_to_watch_are_those_with_a_pod_that_may_ask() {
    let (directory, _) = directory();
    let namespaces = directory.namespaces();
    directory.reset_pods(vec![
        Pod::sample("1", &[]),
        Pod { namespace: "hosts".into(), host_network: true, ..Pod::sample("2", &[A]) },
        Pod { namespace: "done".into(), finished: true, ..Pod::sample("3", &[]) },
    ]);
    assert_eq!(*namespaces.borrow(), ["team-a".into()].into());
    directory.delete_pod(&"1".into());
    assert!(namespaces.borrow().is_empty());
}

#[test]
fn what_becomes_of_a_pods_requests_is_said_of_its_network_its_end_and_its_service_account() {
    for (host_pods, of_host, of_ours) in [
        (HostPods::Off, Reach::Node, Reach::Node),
        (HostPods::Denied, Reach::Denied, Reach::Ours),
        (HostPods::Served, Reach::Cgroup, Reach::Ours),
    ] {
        let directory = directory().0.with_host_pods(host_pods, Some("ours".into()));
        let on_host = |uid: &str| Pod { name: "web-0".into(), host_network: true, ..Pod::sample(uid, &[A]) };
        let of_daemon = |uid: &str| Pod { namespace: "kube2irsa".into(), ..on_host(uid) };
        directory.reset_pods(vec![
            Pod { host_network: false, ..on_host("1") },
            Pod { namespace: "ended".into(), finished: true, ..on_host("2") },
            Pod { namespace: "host".into(), ..on_host("3") },
            of_daemon("ours"),
            // The next one of the daemons.
            Pod { name: "next".into(), ..of_daemon("next") },
        ]);
        let reach = |namespace: &str, name: &str| directory.find(&namespace.into(), name).pods[0].reach;
        let found = ["team-a", "ended", "host", "kube2irsa"].map(|namespace| reach(namespace, "web-0"));
        assert_eq!(found, [Reach::Address, Reach::Ended, of_host, of_ours], "{host_pods:?}");
        assert_eq!(reach("kube2irsa", "next"), of_ours, "{host_pods:?}");
        let mut told = Vec::new();
        directory.each_pod(|reach, _, _| told.push(reach));
        for reach in found {
            assert!(told.contains(&reach), "{told:?}");
        }
    }
}

#[tokio::test]
async fn who_asks_before_they_are_known_waits_for_it_and_no_longer_than_allowed() {
    let (directory, mut lookups) = Directory::new(Binding::WhereFound, NamespacePolicy::Off, |_, _| {}, |_, _| {});
    let directory = Arc::new(directory);
    let soon = || Instant::now() + Duration::from_millis(30);
    assert_eq!(directory.identify(A, soon()).await, Err(Unidentified::NotYet), "pods have not been read");

    directory.reset_pods(vec![]);
    assert_eq!(directory.identify(A, soon()).await, Err(Unidentified::Nobody));
    assert_eq!(lookups.try_recv(), Ok(A), "it was asked for directly");
    directory.pods_may_lag();
    assert_eq!(directory.identify(A, soon()).await, Err(Unidentified::NotYet), "the watch may not have told of it");
    directory.pods_are_up_to_date();
    assert_eq!(directory.identify(A, soon()).await, Err(Unidentified::Nobody));
    directory.apply_pod(Pod::sample("1", &[]));
    assert_eq!(directory.identify(A, soon()).await, Err(Unidentified::NotYet), "a pod awaits its address");

    let asking = tokio::spawn({
        let directory = Arc::clone(&directory);
        async move { directory.identify(A, Instant::now() + Duration::from_secs(60)).await }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    directory.reset_accounts(&"team-a".into(), HashMap::from([("web".into(), account("sa", Some(ROLE)))]));
    assert!(!asking.is_finished());
    directory.apply_pod(Pod::sample("1", &[A]));
    assert_eq!(asking.await.unwrap().unwrap().pod.uid, "1".into());

    directory.apply_pod(Pod::sample("2", &[A]));
    assert_eq!(directory.identify(A, soon()).await, Err(Unidentified::Disputed));
}

#[tokio::test]
async fn a_link_local_address_is_told_at_once_to_be_no_pods_unless_it_is_one() {
    let (directory, mut lookups) = Directory::new(Binding::WhereFound, NamespacePolicy::Off, |_, _| {}, |_, _| {});
    let address = IpAddr::from([169, 254, 172, 2]);
    let much_later = || Instant::now() + Duration::from_secs(3600);
    // Before anything is known, and while some pod awaits its address.
    for pods in [None, Some(vec![Pod::sample("1", &[])])] {
        pods.into_iter().for_each(|pods| directory.reset_pods(pods));
        assert_eq!(directory.identify(address, much_later()).await, Err(Unidentified::LinkLocal));
    }
    assert!(lookups.try_recv().is_err(), "the API server is not asked");

    directory.reset_accounts(&"team-a".into(), HashMap::from([("web".into(), account("sa", Some(ROLE)))]));
    directory.apply_pod(Pod::sample("1", &[address]));
    assert_eq!(directory.identify(address, much_later()).await.unwrap().pod.uid, "1".into());
    directory.apply_pod(Pod::sample("2", &[address]));
    let soon = Instant::now() + Duration::from_millis(30);
    assert_eq!(directory.identify(address, soon).await, Err(Unidentified::Disputed));
}

#[test]
fn a_look_up_does_not_bring_back_a_pod_that_ended_meanwhile() {
    let (directory, _) = directory();
    directory.reset_accounts(&"team-a".into(), HashMap::from([("web".into(), account("sa", Some(ROLE)))]));
    directory.reset_pods(vec![]);
    let before = directory.ends();
    directory.found_pod(Pod::sample("1", &[A]), before);
    assert!(directory.identified(A).is_some());
    directory.delete_pod(&"1".into());
    directory.found_pod(Pod::sample("1", &[A]), before);
    assert_eq!(directory.identified(A), None);

    // A pod that has finished keeps its object, and its address is another's soon.
    let before = directory.ends();
    directory.apply_pod(Pod { finished: true, ..Pod::sample("2", &[A]) });
    directory.found_pod(Pod::sample("2", &[A]), before);
    assert_eq!(directory.identified(A), None);
    directory.apply_pod(Pod::sample("3", &[A]));
    assert_eq!(directory.identified(A).unwrap().pod.uid, "3".into());
}

#[test]
fn a_namespace_limits_the_roles_of_its_pods_and_is_waited_for() {
    let (directory, _) = Directory::new(Binding::WhereFound, NamespacePolicy::Required, |_, _| {}, |_, _| {});
    let namespace = Namespace::from("team-a");
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account("sa", Some(ROLE)))]));
    directory.reset_pods(vec![Pod::sample("1", &[A])]);
    assert_eq!(role(&directory), None, "the namespace is not known yet");
    assert!(!directory.synced());
    directory.apply_demands(&namespace, Demands::default());
    assert!(matches!(role(&directory), Some(Role::Invalid(_))));
    assert!(directory.synced());
    directory.apply_demands(&namespace, permitting(ROLE));
    assert_eq!(arn(&directory).as_deref(), Some(ROLE));
    directory.apply_demands(&namespace, permitting(OTHER_ROLE));
    assert!(matches!(role(&directory), Some(Role::Invalid(_))));
}

#[test]
fn a_session_token_is_required_if_the_account_or_its_namespace_says_so() {
    let (directory, _) = Directory::new(Binding::WhereFound, NamespacePolicy::Annotated, |_, _| {}, |_, _| {});
    let namespace = Namespace::from("team-a");
    directory.reset_pods(vec![Pod::sample("1", &[A])]);
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account("sa", None))]));
    assert!(directory.identified(A).unwrap().require_imdsv2, "the namespace is not known yet");
    for (of_account, of_namespace) in [("", false), ("true", false), ("", true), ("false", true)] {
        let annotations = [("eks.amazonaws.com/role-arn", ROLE), ("kube2irsa.io/require-imdsv2", of_account)];
        directory.reset_accounts(&namespace, HashMap::from([("web".into(), annotated("sa", &annotations))]));
        directory.apply_demands(&namespace, Demands { require_imdsv2: of_namespace, ..Demands::default() });
        let required = directory.identified(A).unwrap().require_imdsv2;
        assert_eq!(required, of_namespace || of_account == "true", "{of_account:?} {of_namespace}");
    }
}

const TARGET: &str = "arn:aws:iam::444455556666:role/target";

#[test]
fn a_namespace_judges_every_hop_and_every_additional_role_by_itself() {
    let (directory, _) = Directory::new(Binding::WhereFound, NamespacePolicy::Annotated, |_, _| {}, |_, _| {});
    let namespace = Namespace::from("team-a");
    let account = annotated(
        "sa",
        &[
            ("eks.amazonaws.com/role-arn", ROLE),
            ("kube2irsa.io/target-role-arn", TARGET),
            ("kube2irsa.io/additional-role-arns", OTHER_ROLE),
        ],
    );
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account)]));
    directory.reset_pods(vec![Pod::sample("1", &[A])]);
    for (permitted, refused) in [
        ([ROLE, TARGET, OTHER_ROLE], None),
        ([ROLE, TARGET, ""], Some(OTHER_ROLE)),
        ([ROLE, OTHER_ROLE, ""], Some(TARGET)),
        ([TARGET, OTHER_ROLE, ""], Some(ROLE)),
    ] {
        directory.apply_demands(&namespace, permitting(&permitted.join(",")));
        let roles = &directory.identified(A).unwrap().roles;
        let refusals = roles.all().filter_map(|role| match role {
            Role::Invalid(AnnotationError::NotPermitted { role, .. }) => Some(role.as_str()),
            _ => None,
        });
        assert_eq!(refusals.collect::<Vec<_>>(), Vec::from_iter(refused), "{permitted:?}");
        assert_eq!(directory.figures().invalid, usize::from(refused.is_some()));
        let named = |name| roles.named(name).map(|role| matches!(role, Role::Granted(_)));
        assert_eq!(named("other"), Some(refused != Some(OTHER_ROLE)));
        let main = refused.is_none_or(|refused| refused == OTHER_ROLE);
        assert_eq!(named("target"), Some(main));
        assert_eq!(named("web"), if main { None } else { Some(false) }, "the first hop goes by no name");
    }
}

#[test]
fn an_invalid_role_is_told_once_however_many_addresses_the_pod_has_and_before_it_has_any() {
    let (sender, told) = mpsc::channel();
    let invalid = move |pod: &Pod, error: &AnnotationError| drop(sender.send((pod.uid.clone(), error.to_string())));
    let (directory, _) = Directory::new(Binding::Required, NamespacePolicy::Off, |_, _| {}, invalid);
    let named = |role: &str| HashMap::from([("web".into(), account("sa", Some(role)))]);
    directory.reset_accounts(&"team-a".into(), named("web"));
    directory.apply_pod(Pod::sample("1", &[]));
    assert!(told.try_recv().is_ok_and(|(pod, error)| pod == "1".into() && error.contains("\"web\"")));
    directory.apply_pod(Pod::sample("1", &[A, "fd00::1".parse().unwrap()]));
    directory.reset_accounts(&"team-a".into(), named("web"));
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty), "it was told already");
    directory.reset_accounts(&"team-a".into(), named("another"));
    assert!(told.try_recv().is_ok_and(|(_, error)| error.contains("\"another\"")));
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
}

#[test]
fn a_change_of_one_role_leaves_the_others_grants_as_they_are() {
    let (directory, entitled) = directory();
    let namespace = Namespace::from("team-a");
    let account = |additional: &str| {
        let additional = ("kube2irsa.io/additional-role-arns", additional);
        HashMap::from([("web".into(), annotated("sa", &[("eks.amazonaws.com/role-arn", ROLE), additional]))])
    };
    directory.reset_accounts(&namespace, account(&format!("{OTHER_ROLE},{TARGET}")));
    directory.reset_pods(vec![Pod::sample("1", &[A])]);
    let grants = || directory.identified(A).unwrap().roles.grants().cloned().collect::<Vec<_>>();
    let before = grants();
    directory.reset_accounts(&namespace, account(&format!("x={OTHER_ROLE}")));
    let after = grants();
    assert!(Arc::ptr_eq(&before[0], &after[0]) && Arc::ptr_eq(&before[1], &after[1]), "another name is no other role");
    assert!(!directory.entitled(&before[2]));
    let told = entitled.try_iter().map(|(_, roles)| roles).collect::<Vec<_>>();
    assert_eq!(told, [vec![ROLE, OTHER_ROLE, TARGET], vec![ROLE, OTHER_ROLE]]);
}

/// A pod at [`A`] whose annotations name this role.
fn naming(uid: &str, role: &str) -> Pod {
    let annotations =
        serde_json::json!({"iam.amazonaws.com/role": role, "iam.amazonaws.com/session-name": format!("pod-{uid}")});
    Pod { legacy: serde_json::from_value::<PodAnnotations>(annotations).unwrap().kept(), ..Pod::sample(uid, &[A]) }
}

fn legacy_directory(base: Option<&str>) -> (Directory, Told) {
    let (sender, entitled) = mpsc::channel();
    let told = move |uid: &PodUid, roles: &Roles| {
        drop(sender.send((uid.clone(), roles.grants().map(|grant| grant.role().to_string()).collect())));
    };
    let legacy = Legacy { base: base.map(str::to_owned), source: Source::default(), unlimited: Unlimited::default() };
    let directory = Directory::new(Binding::WhereFound, NamespacePolicy::Off, told, |_, _| {}).0;
    (directory.with_legacy(Some(legacy)), entitled)
}

/// What a namespace demands that lets its pods name these.
fn letting_name(globs: &[&str]) -> Demands {
    let annotations = [("iam.amazonaws.com/allowed-roles".to_owned(), serde_json::json!(globs).to_string())];
    Demands { legacy: Limits::read(&annotations.into(), Format::Glob), ..Demands::default() }
}

const BASE: &str = "arn:aws:iam::123456789012:role/";

#[test]
fn what_a_pod_names_counts_only_where_its_service_account_names_none_and_that_is_known() {
    let (directory, entitled) = legacy_directory(Some(BASE));
    let namespace = Namespace::from("team-a");
    directory.reset_pods(vec![naming("1", "other")]);
    directory.apply_demands(&namespace, letting_name(&["*"]));
    assert_eq!(role(&directory), None, "its service account may name one");
    directory.reset_accounts(&namespace, HashMap::new());
    assert_eq!(role(&directory), None, "it is not there yet");
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account("sa", None))]));
    assert_eq!(arn(&directory).as_deref(), Some(OTHER_ROLE));
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account("sa", Some(ROLE)))]));
    assert_eq!(arn(&directory).as_deref(), Some(ROLE));
    // One that cannot be meant is no leave to take another.
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account("sa", Some("web")))]));
    assert!(matches!(role(&directory), Some(Role::Invalid(_))));
    let told = entitled.try_iter().map(|(_, roles)| roles).collect::<Vec<_>>();
    assert_eq!(told, [vec![OTHER_ROLE], vec![ROLE], vec![]]);
}

#[test]
fn what_a_pod_names_waits_for_the_account_and_for_the_namespace_and_is_permitted_by_it() {
    let (directory, _) = legacy_directory(None);
    let namespace = Namespace::from("team-a");
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account("sa", None))]));
    directory.reset_pods(vec![naming("1", "other")]);
    directory.apply_demands(&namespace, letting_name(&["*"]));
    assert_eq!(role(&directory), None, "whose role it is is not known yet");
    directory.take_legacy_names_for(BASE.to_owned());
    assert_eq!(arn(&directory).as_deref(), Some(OTHER_ROLE));
    directory.forget_namespace(&namespace);
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account("sa", None))]));
    assert_eq!(role(&directory), None, "what the namespace permits is not known");
    assert!(!directory.synced());
    for demands in [Demands::default(), letting_name(&["web"]), letting_name(&[]), Demands::unreadable()] {
        directory.apply_demands(&namespace, demands);
        assert!(matches!(role(&directory), Some(Role::Invalid(_))));
    }
    // Its service account's is not judged by what pods may name.
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account("sa", Some(OTHER_ROLE)))]));
    assert_eq!(arn(&directory).as_deref(), Some(OTHER_ROLE));
}

#[test]
fn what_a_namespace_permits_of_all_roles_judges_those_that_pods_name_too() {
    let (directory, _) = Directory::new(Binding::WhereFound, NamespacePolicy::Annotated, |_, _| {}, |_, _| {});
    let legacy = Legacy { base: Some(BASE.to_owned()), source: Source::default(), unlimited: Unlimited::default() };
    let directory = directory.with_legacy(Some(legacy));
    let namespace = Namespace::from("team-a");
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account("sa", None))]));
    directory.reset_pods(vec![naming("1", "other")]);
    for (globs, permitted) in [(ROLE, false), (OTHER_ROLE, true)] {
        directory.apply_demands(&namespace, permitting(globs));
        assert!(matches!(role(&directory), Some(Role::Invalid(_))), "one does not stand for the other");
        directory.apply_demands(&namespace, Demands { permitted: permitting(globs).permitted, ..letting_name(&["*"]) });
        assert_eq!(arn(&directory).is_some(), permitted, "{globs}");
    }
}

#[test]
fn another_name_is_another_grant_and_all_of_it_dies_with_the_pod() {
    let (directory, entitled) = legacy_directory(Some(BASE));
    let namespace = Namespace::from("team-a");
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account("sa", None))]));
    directory.apply_demands(&namespace, letting_name(&["*"]));
    directory.reset_pods(vec![naming("1", "web")]);
    let grant = || directory.identified(A).unwrap().roles.grants().next().cloned().unwrap();
    let first = grant();
    directory.apply_pod(naming("1", "web"));
    assert!(Arc::ptr_eq(&first, &grant()), "nothing changed");
    directory.apply_pod(naming("1", "other"));
    assert!(!directory.entitled(&first) && directory.entitled(&grant()));
    let second = grant();
    // The next pod at the address names nothing.
    directory.reset_pods(vec![Pod::sample("2", &[A])]);
    assert_eq!(role(&directory), Some(Role::None));
    assert!(!directory.entitled(&second));
    let told = entitled.try_iter().map(|(uid, roles)| (uid.to_string(), roles)).collect::<Vec<_>>();
    let of = |uid: &str, roles: &[&str]| (uid.to_owned(), roles.iter().map(|role| (*role).to_owned()).collect());
    assert_eq!(told, [of("1", &[ROLE]), of("1", &[OTHER_ROLE]), of("1", &[])]);
}

#[test]
fn where_pods_may_name_none_what_they_name_is_not_even_kept() {
    let (directory, _) = directory();
    let namespace = Namespace::from("team-a");
    directory.reset_accounts(&namespace, HashMap::from([("web".into(), account("sa", None))]));
    for told in [0, 1, 2] {
        match told {
            0 => directory.reset_pods(vec![naming("1", "web")]),
            1 => directory.apply_pod(naming("1", "web")),
            _ => directory.found_pod(naming("1", "web"), directory.ends()),
        }
        assert_eq!(directory.identified(A).unwrap().pod.legacy, None);
        assert_eq!(role(&directory), Some(Role::None));
    }
    assert_eq!(directory.figures().legacy, None);
}

#[test]
fn pods_that_name_a_role_are_counted_by_what_becomes_of_it() {
    let (directory, _) = legacy_directory(Some(BASE));
    let namespace = Namespace::from("team-a");
    let accounts = [("web".into(), account("sa", None)), ("new".into(), account("sb", Some(ROLE)))];
    directory.reset_accounts(&namespace, HashMap::from(accounts));
    let of_account =
        |uid, account: &str| Pod { service_account: account.into(), addresses: vec![], ..naming(uid, "web") };
    directory.reset_pods(vec![
        of_account("used", "web"),
        of_account("superseded", "new"),
        Pod { addresses: vec![], ..naming("refused", "other") },
        Pod { addresses: vec![], ..naming("wrong", "a b") },
        of_account("unknown", "none"),
        Pod { finished: true, ..of_account("ended", "web") },
        Pod::sample("names none", &[]),
    ]);
    directory.apply_demands(&namespace, letting_name(&["web"]));
    let figures = directory.figures().legacy.unwrap();
    assert_eq!(figures, LegacyFigures { used: 1, superseded: 1, refused: 2, not_known: 1 });
}
