use super::*;

const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

fn owner(index: &PodIndex, address: IpAddr) -> Option<String> {
    match index.claim(address) {
        Claim::Pod(pod) => Some(pod.uid.to_string()),
        Claim::Nobody | Claim::Disputed | Claim::Suspended | Claim::Unbound => None,
    }
}

fn withheld(index: &PodIndex) -> Vec<String> {
    let mut pods = index.pods().filter(|pod| index.is_withheld(pod)).map(|pod| pod.uid.to_string()).collect::<Vec<_>>();
    pods.sort();
    pods
}

#[test]
fn a_pod_is_found_by_each_of_its_addresses_until_it_is_gone() {
    let mut index = PodIndex::default();
    assert_eq!(index.apply(Pod::sample("1", &[A, B])).addresses, [A, B].into());
    assert_eq!((owner(&index, A), owner(&index, B)), (Some("1".into()), Some("1".into())));

    let changed = index.delete(&"1".into());
    assert_eq!(changed, Changed { addresses: [A, B].into(), pods: ["1".into()].into(), suspended: vec![] });
    assert_eq!(index.claim(A), Claim::Nobody);
}

#[test]
fn a_late_delete_of_the_old_pod_leaves_the_address_with_the_new_one() {
    let mut index = PodIndex::default();
    index.apply(Pod::sample("old", &[A]));
    index.apply(Pod { terminating: true, ..Pod::sample("old", &[A]) });
    index.apply(Pod::sample("new", &[A]));
    assert_eq!(owner(&index, A), Some("new".into()), "the terminating one yields");
    index.delete(&"old".into());
    assert_eq!(owner(&index, A), Some("new".into()));
}

#[test]
fn a_pods_start_is_the_one_that_was_told_last_unless_that_is_ahead_of_our_clock() {
    let mut index = PodIndex::default();
    let mut started = |started, start_time| {
        index.apply(Pod { started, start_time, ..Pod::sample("1", &[A]) });
        index.get(&"1".into()).unwrap().started
    };
    assert_eq!(started(100, 100), 100, "made, and not started yet");
    assert_eq!(started(110, 110), 110);
    assert_eq!([started(120, 500), started(130, 500), started(500, 500)], [120; 3]);
}

#[test]
fn an_address_with_two_living_claimants_is_nobodys() {
    let mut index = PodIndex::default();
    index.apply(Pod::sample("1", &[A]));
    index.apply(Pod::sample("2", &[A]));
    assert_eq!(index.claim(A), Claim::Disputed);
    assert_eq!(index.withheld(), (1, 0));
    assert_eq!(withheld(&index), ["1", "2"]);
    index.apply(Pod::sample("2", &[A, B]));
    assert_eq!(withheld(&index), ["1"], "the other one has an address of its own");
    index.apply(Pod::sample("2", &[A]));

    index.apply(Pod { running: false, ..Pod::sample("1", &[A]) });
    assert_eq!(owner(&index, A), Some("2".into()), "one without a running container yields");
    assert_eq!(withheld(&index), ["1"]);

    index.apply(Pod { terminating: true, ..Pod::sample("2", &[A]) });
    assert_eq!(index.claim(A), Claim::Disputed, "both yield: neither can be meant for certain");
}

#[test]
fn a_lone_pod_is_served_while_it_starts_and_while_it_terminates() {
    let mut index = PodIndex::default();
    index.apply(Pod { running: false, ..Pod::sample("1", &[A]) });
    assert_eq!(owner(&index, A), Some("1".into()));
    index.apply(Pod { terminating: true, ..Pod::sample("1", &[A]) });
    assert_eq!(owner(&index, A), Some("1".into()));
}

#[test]
fn pods_that_finished_or_use_the_hosts_network_have_no_address() {
    let mut index = PodIndex::default();
    index.apply(Pod { host_network: true, ..Pod::sample("1", &[A]) });
    assert_eq!(index.claim(A), Claim::Nobody);

    index.apply(Pod::sample("2", &[B]));
    let changed = index.apply(Pod { finished: true, ..Pod::sample("2", &[B]) });
    assert_eq!(changed, Changed { addresses: [B].into(), pods: ["2".into()].into(), suspended: vec![] });
    assert_eq!(index.claim(B), Claim::Nobody);
}

#[test]
fn a_pod_that_moves_to_another_address_leaves_the_first() {
    let mut index = PodIndex::default();
    index.apply(Pod::sample("1", &[A]));
    assert_eq!(index.apply(Pod::sample("1", &[B])).addresses, [A, B].into());
    assert_eq!((owner(&index, A), owner(&index, B)), (None, Some("1".into())));
}

#[test]
fn a_relist_forgets_what_is_not_in_it() {
    let mut index = PodIndex::default();
    index.apply(Pod::sample("1", &[A]));
    let changed = index.reset(vec![Pod::sample("2", &[A, B])]);
    assert_eq!(changed, Changed { addresses: [A, B].into(), pods: ["1".into(), "2".into()].into(), suspended: vec![] });
    assert_eq!((owner(&index, A), owner(&index, B)), (Some("2".into()), Some("2".into())));
}

#[test]
fn an_unknown_address_may_be_that_of_a_pod_without_one() {
    let mut index = PodIndex::default();
    index.apply(Pod { host_network: true, ..Pod::sample("1", &[]) });
    index.apply(Pod { finished: true, ..Pod::sample("2", &[]) });
    assert!(!index.awaits_addresses());
    index.apply(Pod::sample("3", &[]));
    assert!(index.awaits_addresses());
}
