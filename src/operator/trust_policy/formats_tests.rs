use serde_json::{Value, json};

use super::*;
use crate::{
    identity::annotations::{EKS_PREFIX, Keys},
    operator::trust_policy::Roles,
};

const WEB: &str = "arn:aws:iam::111122223333:role/team/a/web";
const READER: &str = "arn:aws:iam::444455556666:role/web";

fn roles(annotations: &[(&str, &str)]) -> Roles {
    let mut roles = Roles::default();
    let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let wishes = Keys::new(EKS_PREFIX).read(&annotations).unwrap().unwrap();
    roles.add(&"team-a".into(), &"web".into(), &wishes, "sts.amazonaws.com");
    roles
}

fn with_issuers<T>(roles: &Roles, with_providers: bool, ask: impl FnOnce(&Plan<'_>) -> T) -> T {
    let issuers = ["https://oidc.example.com/blue", "https://192.0.2.30"].map(|url| url.parse().unwrap());
    ask(&Plan::new(roles.iter(), &issuers, with_providers))
}

fn one() -> Roles {
    roles(&[("eks.amazonaws.com/role-arn", WEB), ("eks.amazonaws.com/audience", "a")])
}

fn two() -> Roles {
    roles(&[("eks.amazonaws.com/role-arn", WEB), ("kube2irsa.io/target-role-arn", READER)])
}

fn value(json: &Json) -> Value {
    serde_json::from_str(&json.to_string()).unwrap()
}

#[test]
fn json_has_each_role_and_the_providers_of_its_account() {
    let json = with_issuers(&one(), true, |plan| value(&plan.json()));
    assert_eq!(json["roles"][0]["arn"], WEB);
    assert_eq!(json["roles"][0]["trustPolicy"]["Statement"].as_array().unwrap().len(), 2);
    let provider = |name: &str| {
        json!({ "arn": format!("arn:aws:iam::111122223333:oidc-provider/{name}"), "url": format!("https://{name}"),
            "clientIds": ["a"] })
    };
    assert_eq!(json["providers"], json!([provider("192.0.2.30"), provider("oidc.example.com/blue")]));
    let json = with_issuers(&two(), true, |plan| value(&plan.json()));
    assert_eq!(json["providers"].as_array().unwrap().len(), 2, "a target's account needs none");
    assert_eq!(json["roles"][0]["permissionsPolicy"]["Statement"][0]["Resource"], READER);
    assert_eq!(json["roles"][1]["arn"], READER);
    let json = with_issuers(&two(), false, |plan| value(&plan.json()));
    assert_eq!(json["providers"], json!([]));
}

#[test]
fn terraform_holds_the_same_policies() {
    let (text, policies) = with_issuers(&one(), true, |plan| {
        let policies = plan.policies().map(|(_, policy)| policy.clone()).collect::<Vec<_>>();
        (plan.terraform(), policies)
    });
    let expected = format!(
        r#"resource "aws_iam_openid_connect_provider" "_192_0_2_30" {{
  url            = "https://192.0.2.30"
  client_id_list = ["a"]
}}

resource "aws_iam_openid_connect_provider" "oidc_example_com_blue" {{
  url            = "https://oidc.example.com/blue"
  client_id_list = ["a"]
}}

resource "aws_iam_role" "web" {{
  name               = "web"
  path               = "/team/a/"
  assume_role_policy = <<-POLICY
{}
  POLICY
}}"#,
        policies[0].to_string().lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
    );
    assert_eq!(text, expected);
}

#[test]
fn of_several_accounts_each_resource_says_whose_it_is() {
    let (terraform, template) = with_issuers(&two(), true, |plan| (plan.terraform(), value(&plan.cloudformation())));
    for part in [
        "#   provider \"aws\" { alias = \"account_444455556666\" … }",
        "resource \"aws_iam_role\" \"web\" {\n  provider = aws.account_111122223333\n",
        "resource \"aws_iam_role\" \"web_2\" {\n  provider = aws.account_444455556666\n",
        "resource \"aws_iam_role_policy\" \"web\" {",
    ] {
        assert!(terraform.contains(part), "{part}: {terraform}");
    }
    assert_eq!(
        template["Conditions"]["Account444455556666"],
        json!({ "Fn::Equals": [{"Fn::Sub": "${AWS::Partition}:${AWS::AccountId}"}, "aws:444455556666"] })
    );
    let of = |name: &str| template["Resources"][name]["Condition"].clone();
    assert_eq!((of("RoleWeb"), of("RoleWebN2")), (json!("Account111122223333"), json!("Account444455556666")));
    assert_eq!(of("ProviderOidcExampleComBlue"), "Account111122223333");
    let hub = &template["Resources"]["RoleWeb"]["Properties"];
    assert_eq!((&hub["Path"], &hub["RoleName"]), (&json!("/team/a/"), &json!("web")));
    assert_eq!(hub["Policies"][0]["PolicyDocument"]["Statement"][0]["Resource"], READER);
    let one = with_issuers(&one(), true, |plan| value(&plan.cloudformation()));
    assert_eq!((&one["Conditions"], &one["Resources"]["RoleWeb"]["Condition"]), (&Value::Null, &Value::Null));
}

#[test]
fn an_account_of_another_partition_is_another() {
    let account = |partition| Account { partition, id: "1" };
    assert_eq!(["aws", "aws-us-gov"].map(|it| alias(account(it))), ["account_1", "account_aws_us_gov_1"]);
    assert_eq!(account("aws-cn").named("Account", ""), "Accountawscn1");
}

#[test]
fn nothing_in_a_string_is_taken_for_an_expression() {
    assert_eq!(quoted(r#"a"b\c${d}%{e}"#), r#""a\"b\\c$${d}%%{e}""#);
    let mut names = Names::default();
    let given = ["web", "web", "web_2", "7", "Web"].map(|text| names.free(text, '_'));
    assert_eq!(given, ["web", "web_2", "web_2_2", "_7", "Web"]);
}
