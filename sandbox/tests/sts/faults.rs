//! How STS fails when it is told to.

use std::{sync::Arc, time::Duration};

use aws_sdk_sts::{
    config::retry::RetryConfig,
    error::{ProvideErrorMetadata as _, SdkError},
};
use aws_smithy_types::{DateTime, date_time::Format};
use sandbox::{
    clock,
    sts::{Fault, Which},
};

use crate::world::{ACTION, ROLE, World, form, seconds};

#[tokio::test]
async fn throttling_and_failures_are_awss() {
    let world = World::new().await;
    let faults = world.sts.faults();
    for fault in [Fault::Throttling, Fault::InternalFailure, Fault::ServiceUnavailable] {
        faults.fail(fault, Which::Next(1));
    }
    let token = world.token();
    world.assume(&token, &[]).await.refuses(400, "Throttling", "Rate exceeded");
    let text = "The request processing has failed because of an unknown error, exception or failure.";
    world.assume(&token, &[]).await.refuses(500, "InternalFailure", text);
    let text = "The request has failed due to a temporary failure of the server.";
    world.assume(&token, &[]).await.refuses(503, "ServiceUnavailable", text);
    assert_eq!(world.assume(&token, &[]).await.status, 200);
    let outcomes: Vec<_> = world.sts.calls().iter().map(|call| call.outcome).collect();
    assert_eq!(outcomes, ["Throttling", "InternalFailure", "ServiceUnavailable", "Success"]);
}

#[tokio::test]
async fn the_sdk_takes_throttling_for_what_it_is_and_tries_again() {
    let world = World::new().await;
    world.sts.faults().fail(Fault::Throttling, Which::EveryOther);
    let sdk = world.sdk_with(None, RetryConfig::standard().with_initial_backoff(Duration::from_millis(1)));
    let ask = sdk.assume_role_with_web_identity().role_arn(ROLE).role_session_name("s1");
    ask.web_identity_token(world.token()).send().await.unwrap();
    assert_eq!(world.sts.call_count(ACTION), 2);
    world.sts.faults().clear();
    world.sts.faults().fail(Fault::Throttling, Which::All);
    let ask = world.sdk(None).assume_role_with_web_identity().role_arn(ROLE).role_session_name("s1");
    let error = ask.web_identity_token(world.token()).send().await.unwrap_err();
    assert_eq!(error.code(), Some("Throttling"));
}

#[tokio::test]
async fn a_connection_is_cut_in_the_middle_of_an_answer() {
    let world = World::new().await;
    world.sts.faults().fail(Fault::Cut, Which::Next(1));
    let sdk = world.sdk(None);
    let ask = sdk.assume_role_with_web_identity().role_arn(ROLE).role_session_name("s1");
    let error = ask.web_identity_token(world.token()).send().await.unwrap_err();
    assert!(!matches!(error, SdkError::ServiceError(_)), "{error:?}");
    assert_eq!(world.sts.calls()[0].outcome, "Cut");
    assert_eq!(world.assume(&world.token(), &[]).await.status, 200);
}

#[tokio::test]
async fn fifty_answers_are_held_until_they_are_released() {
    let world = Arc::new(World::new().await);
    world.sts.faults().hold();
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.assume(&world.token(), &[]).await.status })
        })
        .collect();
    tokio::time::timeout(Duration::from_secs(30), async {
        while world.sts.faults().held() < 50 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(asking.iter().all(|ask| !ask.is_finished()));
    world.sts.faults().release();
    for ask in asking {
        assert_eq!(ask.await.unwrap(), 200);
    }
    assert_eq!(world.sts.faults().held(), 0);
}

#[tokio::test]
async fn a_caller_that_gives_up_is_held_no_longer() {
    let world = World::new().await;
    world.sts.faults().hold();
    let token = world.token();
    let ask = tokio::time::timeout(Duration::from_millis(500), world.assume(&token, &[]));
    assert!(ask.await.is_err());
    tokio::time::timeout(Duration::from_secs(5), async {
        while world.sts.faults().held() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_stall_holds_everything_and_latency_adds_up() {
    let world = World::new().await;
    let faults = world.sts.faults();
    let token = world.token();
    faults.stall(true);
    assert!(tokio::time::timeout(Duration::from_millis(300), world.assume(&token, &[])).await.is_err());
    faults.stall(false);
    faults.set_latency(Duration::from_millis(200));
    let start = tokio::time::Instant::now();
    assert_eq!(world.assume(&token, &[]).await.status, 200);
    assert!(start.elapsed() >= Duration::from_millis(200));
    faults.clear();
    assert_eq!(world.assume(&token, &[]).await.status, 200);
}

#[tokio::test]
async fn a_clock_that_is_ahead_shows_in_the_date_and_in_what_is_checked() {
    let world = World::new().await;
    world.sts.faults().set_clock_skew(3600);
    let answer = world.send(form(&world.endpoint(), "Action=Nonsense")).await;
    let date = DateTime::from_str(answer.headers["date"].to_str().unwrap(), Format::HttpDate).unwrap().secs();
    let ahead = date - i64::try_from(seconds(clock::now())).unwrap();
    assert!((3590..=3600).contains(&ahead), "{ahead}");
    let answer = world.assume(&world.token(), &[]).await;
    assert_eq!(answer.tag("Code"), "ExpiredTokenException");
}
