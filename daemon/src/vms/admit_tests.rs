//! New VMs on the host of a closed network, by members with a token for it.

use super::*;
use crate::{
    vms::http,
    wiring::alone::{Alone, send},
};
use axum::http::Request;
use p2pvm_api::{Kind, RevokeToken, TokenRevoked};
use p2pvm_authority::{Grant, Proof};
use p2pvm_overlay::identity::KeyPair;

/// What a member is told that asks for a new VM and shows a token.
async fn ask(alone: &Alone, by: &KeyPair, memory_mib: u64, token: &Token) -> String {
    ask_as(alone, by, None, memory_mib, token).await
}

/// The same with a user's proof.
async fn ask_as(
    alone: &Alone,
    by: &KeyPair,
    proof: Option<&Proof>,
    memory_mib: u64,
    token: &Token,
) -> String {
    let new = CreateVm {
        name: "new".into(),
        image: "/no/image".into(),
        cpus: 1,
        memory_mib,
        disk_bytes: None,
        start: false,
        on: None,
        restart: None,
        user: None,
    };
    let router = http::for_member(alone.services.vms.clone(), MemberId(by.public()));
    let request = Request::post("/vms")
        .header("content-type", "application/json")
        .header(HEADER, token.to_string());
    let request = match proof {
        Some(proof) => request.header(USER_HEADER, proof.to_string()),
        None => request,
    };
    let request = request
        .body(Body::from(serde_json::to_vec(&new).unwrap()))
        .unwrap();
    send(router, request).await.text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_as_much_of_a_host_as_it_says() {
    let alone = Alone::start().await;
    let services = &alone.services;
    services.access.set("default = \"deny\"").await.unwrap();
    let (parts, friend) = (&services.vms.parts, KeyPair::from_seed(&[3; 32]));
    let now = UnixTime::now().0;
    let grant = Grant {
        resource: Resource::Host(parts.me()),
        rights: [Right::Create].into_iter().collect(),
        audience: friend.public(),
        from: now - 1,
        until: now + 600,
        amounts: Amounts {
            memory_mib: Some(512),
            ..Amounts::default()
        },
    };
    let token = Token::issue(parts.identity.keys(), grant);
    // One that was let through hears of the image.
    let fits = ask(&alone, &friend, 512, &token).await;
    assert!(fits.contains("[offer]"), "{fits}");
    let large = ask(&alone, &friend, 513, &token).await;
    assert!(large.contains("allows less memory"), "{large}");
    let thief = ask(&alone, &KeyPair::from_seed(&[4; 32]), 64, &token).await;
    assert!(thief.contains("given to another member"), "{thief}");
    let own = ask(&alone, &friend, 64, &Token::issue(&friend, grant)).await;
    assert!(own.contains("not given by the owner"), "{own}");
    let token_text = token.to_string();
    let revoked: TokenRevoked = services
        .revoker
        .revoke(&RevokeToken { token: token_text })
        .await
        .unwrap();
    assert_eq!(revoked.host.as_deref(), Some("attic"));
    let late = ask(&alone, &friend, 64, &token).await;
    assert!(late.contains("the token was revoked"), "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_token_opens_at_any_member_with_the_users_proof() {
    let alone = Alone::start().await;
    let services = &alone.services;
    services.access.set("default = \"deny\"").await.unwrap();
    let (parts, now) = (&services.vms.parts, UnixTime::now().0);
    let (user, desk) = (KeyPair::from_seed(&[5; 32]), KeyPair::from_seed(&[6; 32]));
    let grant = Grant {
        resource: Resource::Host(parts.me()),
        rights: [Right::Create].into_iter().collect(),
        audience: user.public(),
        from: now - 1,
        until: now + 600,
        amounts: Amounts::default(),
    };
    let token = Token::issue(parts.identity.keys(), grant);
    let without = ask(&alone, &desk, 64, &token).await;
    assert!(without.contains("given to another member"), "{without}");
    let asked = |member: &KeyPair| Asked {
        member: member.public(),
        method: "POST",
        path: "/vms",
    };
    let proof = Proof::sign(&user, &asked(&desk), now);
    let with = ask_as(&alone, &desk, Some(&proof), 64, &token).await;
    assert!(with.contains("[offer]"), "{with}");
    let again = ask_as(&alone, &desk, Some(&proof), 64, &token).await;
    assert!(again.contains("used already"), "{again}");
    let thief = KeyPair::from_seed(&[7; 32]);
    let proof = Proof::sign(&user, &asked(&desk), now);
    let stolen = ask_as(&alone, &thief, Some(&proof), 64, &token).await;
    assert!(stolen.contains("for another request"), "{stolen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_judged_before_a_requests_body_is_read() {
    let alone = Alone::start().await;
    let services = &alone.services;
    services.access.set("default = \"deny\"").await.unwrap();
    let (parts, friend) = (&services.vms.parts, KeyPair::from_seed(&[3; 32]));
    let now = UnixTime::now().0;
    let grant = Grant {
        resource: Resource::Host(parts.me()),
        rights: [Right::Create].into_iter().collect(),
        audience: friend.public(),
        from: now - 1,
        until: now + 600,
        amounts: Amounts::default(),
    };
    let ask = async |path: &str, token: Option<Token>| {
        let router = http::for_member(services.vms.clone(), MemberId(friend.public()));
        let mut request = Request::post(path).header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header(HEADER, token.to_string());
        }
        let request = request.body(Body::from("{\"name\": 7}")).unwrap();
        send(router, request).await.failure()
    };
    let of_others = Token::issue(&friend, grant);
    for (path, token) in [
        ("/vms", None),
        ("/vms", Some(of_others)),
        ("/vms/web/restore", None),
    ] {
        let refused = ask(path, token).await;
        assert_eq!(refused.kind, Kind::Refused, "{path}: {refused}");
        assert!(refused.message.contains("lacks the right"), "{refused}");
    }
    let token = Token::issue(parts.identity.keys(), grant);
    let unread = ask("/vms", Some(token)).await;
    assert_eq!(unread.kind, Kind::Usage, "{unread}");
}
