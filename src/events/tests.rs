use super::*;

#[test]
fn an_event_is_named_after_its_pod_and_the_name_is_one_that_kubernetes_takes() {
    let first = SystemTime::UNIX_EPOCH + Duration::from_nanos(0x18ab);
    assert_eq!(name("web-0", first), "web-0.18ab");
    let long = format!("{}-{}", "a".repeat(247), "b".repeat(5));
    let name = name(&long, first);
    assert!(name.len() <= LONGEST_NAME && name.ends_with("a.18ab"), "{name}");
}

#[tokio::test]
async fn what_does_not_fit_the_queue_is_dropped_and_counted_and_reporting_never_waits() {
    let metrics = Arc::new(Metrics::new().unwrap());
    let (events, mut reported) = Events::new("node-1".into(), "sts.amazonaws.com".to_owned(), Arc::clone(&metrics));
    let error = AnnotationError::ExternalId("kube2irsa.io/external-id");
    for uid in 0..WAITING + 5 {
        events.invalid(&Pod::sample(&uid.to_string(), &[]), &error);
        events.invalid(&Pod::sample(&uid.to_string(), &[]), &error);
    }
    assert_eq!(metrics.events.with_label_values(&["dropped"]).get(), 5);
    let event = reported.recv().await.unwrap();
    assert_eq!(event.reason.as_deref(), Some("InvalidAnnotation"));
    let regarding = event.regarding.unwrap();
    assert_eq!((regarding.kind.as_deref(), regarding.uid.as_deref()), (Some("Pod"), Some("0")));
    assert_eq!((event.reporting_instance.as_deref(), event.series), (Some("node-1"), None));
}
