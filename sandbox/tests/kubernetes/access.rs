//! Who is let in, and to what.

use sandbox::{issuer::Issuer, kubernetes::Grant};
use serde_json::json;

use super::support::{Cluster, pod};

const WEB: &str = "system:serviceaccount:team-a:web";

#[tokio::test]
async fn who_has_no_credential_of_this_cluster_is_unauthorized() {
    let (cluster, _) = Cluster::with_pod().await;
    let kubernetes = &cluster.kubernetes;
    let good = kubernetes.service_account_token("team-a", "web", Some("web-1")).unwrap();
    assert_eq!(cluster.get_as(&good, "/version").await.code, 200);

    let claims = super::support::claims(&good);
    let with = |claim: &str, value: serde_json::Value| {
        let mut claims = claims.clone();
        claims[claim] = value;
        claims
    };
    let other = Issuer::new("https://issuer.test").unwrap();
    for (what, credentials) in [
        ("none", String::new()),
        ("another scheme", "Basic YTpi".to_owned()),
        ("unknown", "Bearer unknown".to_owned()),
        ("another audience", format!("Bearer {}", cluster.issuer.sign(&with("aud", json!(["sts"]))).unwrap())),
        ("expired", format!("Bearer {}", cluster.issuer.sign(&with("exp", json!(1))).unwrap())),
        ("another issuer", format!("Bearer {}", cluster.issuer.sign(&with("iss", json!("https://x"))).unwrap())),
        ("another key", format!("Bearer {}", other.sign(&claims).unwrap())),
    ] {
        let answer = cluster.call("GET", "/version", &[("authorization", &credentials)], "").await;
        assert_eq!(answer.code, 401, "{what}");
        answer.refuses(401, "Unauthorized", "Unauthorized");
    }
}

#[tokio::test]
async fn a_token_dies_with_its_pod_and_with_its_account() {
    let (cluster, _) = Cluster::with_pod().await;
    let kubernetes = &cluster.kubernetes;
    let of_pod = kubernetes.service_account_token("team-a", "web", Some("web-1")).unwrap();
    let of_account = kubernetes.service_account_token("team-a", "web", None).unwrap();

    // Another pod of the same name is not the same pod.
    kubernetes.create_pod(pod("web-1"));
    assert_eq!(cluster.get_as(&of_pod, "/version").await.code, 401);
    assert_eq!(cluster.get_as(&of_account, "/version").await.code, 200);

    kubernetes.delete_service_account("team-a", "web");
    kubernetes.apply_service_account("team-a", "web", &[]);
    assert_eq!(cluster.get_as(&of_account, "/version").await.code, 401);
}

#[tokio::test]
async fn a_service_account_may_do_what_was_granted_and_nothing_else() {
    let cluster = Cluster::start().await;
    let token = cluster.kubernetes.service_account_token("team-a", "web", None).unwrap();
    for (path, message) in [
        (
            "/api/v1/pods",
            r#"pods is forbidden: User "system:serviceaccount:team-a:web" cannot list resource "pods" in API group "" at the cluster scope"#,
        ),
        (
            "/api/v1/pods?watch=1",
            r#"pods is forbidden: User "system:serviceaccount:team-a:web" cannot watch resource "pods" in API group "" at the cluster scope"#,
        ),
        (
            "/api/v1/namespaces/team-a/pods/web-1",
            r#"pods "web-1" is forbidden: User "system:serviceaccount:team-a:web" cannot get resource "pods" in API group "" in the namespace "team-a""#,
        ),
        (
            "/api/v1/foos",
            r#"foos is forbidden: User "system:serviceaccount:team-a:web" cannot list resource "foos" in API group "" at the cluster scope"#,
        ),
        ("/metrics", r#"forbidden: User "system:serviceaccount:team-a:web" cannot get path "/metrics""#),
    ] {
        cluster.get_as(&token, path).await.refuses(403, "Forbidden", message);
    }

    cluster.kubernetes.grant(WEB, Grant::new(&["list"], "pods").namespace("team-a"));
    assert_eq!(cluster.get_as(&token, "/api/v1/namespaces/team-a/pods").await.code, 200);
    for refused in ["/api/v1/pods", "/api/v1/namespaces/team-a/pods?watch=1", "/api/v1/namespaces/other/pods"] {
        assert_eq!(cluster.get_as(&token, refused).await.code, 403, "{refused}");
    }
}

#[tokio::test]
async fn a_grant_of_tokens_is_a_grant_of_a_subresource() {
    let cluster = Cluster::start().await;
    let token = cluster.kubernetes.service_account_token("team-a", "web", None).unwrap();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let path = "/api/v1/namespaces/team-a/serviceaccounts/web/token";
    cluster.kubernetes.grant(WEB, Grant::new(&["create"], "serviceaccounts"));
    cluster.call("POST", path, &headers, "{}").await.refuses(
        403,
        "Forbidden",
        r#"serviceaccounts "web" is forbidden: User "system:serviceaccount:team-a:web" cannot create resource "serviceaccounts/token" in API group "" in the namespace "team-a""#,
    );
    cluster.kubernetes.grant(WEB, Grant::new(&["create"], "serviceaccounts/token"));
    assert_eq!(cluster.call("POST", path, &headers, "{}").await.code, 201);
}

#[tokio::test]
async fn who_may_not_impersonate_is_told_what_is_missing_first() {
    let (cluster, _) = Cluster::with_pod().await;
    let kubernetes = &cluster.kubernetes;
    let of_pod = format!("Bearer {}", kubernetes.service_account_token("team-a", "web", Some("web-1")).unwrap());
    let unbound = format!("Bearer {}", kubernetes.service_account_token("team-a", "web", None).unwrap());
    let list = async |bearer: &str, user: &str| {
        cluster.call("GET", "/api/v1/pods", &[("authorization", bearer), ("impersonate-user", user)], "").await
    };
    let refusal = |verb: &str| {
        format!(r#"pods is forbidden: User "{WEB}" cannot {verb} resource "pods" in API group "" at the cluster scope"#)
    };
    for (bearer, user, verb) in [
        (&of_pod, "system:node:node-a", "impersonate-on:associated-node:list"),
        (&of_pod, "system:node:node-b", "impersonate-on:arbitrary-node:list"),
        (&unbound, "system:node:node-a", "impersonate-on:arbitrary-node:list"),
        (&of_pod, "jane", "impersonate-on:user-info:list"),
        (&of_pod, "system:serviceaccount:team-a:db", "impersonate-on:serviceaccount:list"),
    ] {
        list(bearer, user).await.refuses(403, "Forbidden", &refusal(verb));
    }
    kubernetes.grant(WEB, Grant::new(&["impersonate-on:associated-node:list"], "pods"));
    list(&of_pod, "system:node:node-a").await.refuses(
        403,
        "Forbidden",
        &format!(
            r#"nodes.authentication.k8s.io "*" is forbidden: User "{WEB}" cannot impersonate:associated-node resource "nodes" in API group "authentication.k8s.io" at the cluster scope"#
        ),
    );
    let answer = cluster.call("GET", "/api/v1/pods", &[("impersonate-group", "system:nodes")], "").await;
    answer.refuses(
        400,
        "BadRequest",
        r#"requested &user.DefaultInfo{Name:"", UID:"", Groups:[]string{"system:nodes"}, Extra:map[string][]string(nil)} without impersonating a user name"#,
    );
}

#[tokio::test]
async fn a_node_is_impersonated_by_its_own_pod_and_may_what_concerns_its_pods() {
    let (cluster, uid) = Cluster::with_pod().await;
    let kubernetes = &cluster.kubernetes;
    let other = kubernetes.create_pod(pod("web-2").node("node-b"));
    let bearer = format!("Bearer {}", kubernetes.service_account_token("team-a", "web", Some("web-1")).unwrap());
    let as_node = [
        ("authorization", bearer.as_str()),
        ("impersonate-user", "system:node:node-a"),
        ("content-type", "application/json"),
    ];
    for grant in [
        Grant::new(&["impersonate:associated-node"], "nodes").group("authentication.k8s.io"),
        Grant::new(&["impersonate-on:associated-node:list", "impersonate-on:associated-node:watch"], "pods"),
        Grant::new(&["impersonate-on:associated-node:create"], "serviceaccounts/token"),
    ] {
        kubernetes.grant(WEB, grant);
    }
    let list = async |query: &str| cluster.call("GET", &format!("/api/v1/pods{query}"), &as_node, "").await;
    assert_eq!(list("?fieldSelector=spec.nodeName%3Dnode-a").await.names(), ["web-1"]);
    let node = r#"User "system:node:node-a" cannot"#;
    let all = format!(
        r#"pods is forbidden: {node} list resource "pods" in API group "" at the cluster scope: can only list/watch pods with spec.nodeName field selector"#
    );
    list("").await.refuses(403, "Forbidden", &all);
    list("?fieldSelector=spec.nodeName%3Dnode-b").await.refuses(403, "Forbidden", &all);

    let token = async |account: &str, request: &serde_json::Value| {
        let path = format!("/api/v1/namespaces/team-a/serviceaccounts/{account}/token");
        cluster.call("POST", &path, &as_node, &request.to_string()).await
    };
    let request = |pod: &str, uid: &str| {
        json!({"spec": {
            "audiences": ["sts.amazonaws.com"],
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid},
        }})
    };
    let refused = |why: &str| format!(r#"serviceaccounts "web" is forbidden: {why}"#);
    token("web", &request("web-1", &uid)).await.refuses(
        403,
        "Forbidden",
        &refused(r#"audience "sts.amazonaws.com" not found in pod spec volume, system:node:node-a is not authorized to request tokens for this audience"#),
    );
    let audience = Grant::new(&["request-serviceaccounts-token-audience"], "sts.amazonaws.com");
    kubernetes.grant_group("system:nodes", audience);
    assert_eq!(token("web", &request("web-1", &uid)).await.code, 201);
    for (request, why) in [
        (request("web-2", &other), "node requested token bound to a pod scheduled on a different node"),
        (request("web-1", ""), "node requested token with a pod binding without a uid"),
        (json!({}), "node requested token not bound to a pod"),
    ] {
        token("web", &request).await.refuses(403, "Forbidden", &refused(why));
    }
    token("db", &request("web-1", &uid)).await.refuses(
        403,
        "Forbidden",
        &format!(
            r#"serviceaccounts "db" is forbidden: {node} create resource "serviceaccounts/token" in API group "" in the namespace "team-a": no relationship found between node 'node-a' and this object"#
        ),
    );
    let recorded = kubernetes.requests().pop().unwrap();
    assert_eq!((recorded.user.as_str(), recorded.impersonated.as_str()), (WEB, "system:node:node-a"));
}

#[tokio::test]
async fn any_service_account_may_read_who_signs_its_tokens() {
    let cluster = Cluster::start().await;
    let token = cluster.kubernetes.service_account_token("team-a", "web", None).unwrap();
    let discovery = cluster.get_as(&token, "/.well-known/openid-configuration").await;
    assert_eq!(discovery.json()["issuer"], "https://issuer.test");
    let keys = cluster.get_as(&token, "/openid/v1/jwks").await;
    assert_eq!(keys.headers["content-type"], "application/jwk-set+json");
    assert_eq!(keys.json()["keys"][0]["alg"], "RS256");
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("accept", "application/json")];
    assert_eq!(cluster.call("GET", "/openid/v1/jwks", &headers, "").await.code, 406);
    assert_eq!(cluster.get_as("", "/openid/v1/jwks").await.code, 401);
}

#[tokio::test]
async fn requests_are_recorded_with_who_asked_and_without_secrets() {
    let cluster = Cluster::start().await;
    cluster.get("/api/v1/namespaces/team-a/pods?limit=5").await;
    cluster.get_as("a-secret", "/api/v1/pods").await;
    let requests = cluster.kubernetes.requests();
    assert_eq!((requests[0].verb.as_str(), requests[0].resource.as_str()), ("list", "pods"));
    assert_eq!((requests[0].user.as_str(), requests[0].query.as_str()), ("admin", "limit=5"));
    assert_eq!(requests[1].user, "");
    assert!(!format!("{requests:?}").contains("secret"));
}
