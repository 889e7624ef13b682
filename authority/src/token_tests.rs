//! What a token allows, and what makes it invalid.

use super::*;
use p2pvm_overlay::VmId;
use proptest::prelude::*;

const WEB: Resource = Resource::Vm(VmId([7; 32]));
const NOW: u64 = 1_800_000_000;

fn key(number: u8) -> KeyPair {
    KeyPair::from_seed(&[number; 32])
}

fn grant(to: &KeyPair, rights: &[Right]) -> Grant {
    Grant {
        resource: WEB,
        rights: rights.iter().copied().collect(),
        audience: to.public(),
        from: NOW,
        until: NOW + 3600,
        amounts: Amounts::default(),
    }
}

fn request(asker: &KeyPair, right: Right) -> Request {
    Request {
        asker: asker.public(),
        resource: WEB,
        right,
        amounts: Amounts::default(),
        now: NOW + 5,
    }
}

fn never(_: &Serial) -> bool {
    false
}

#[test]
fn a_token_opens_what_its_owner_gave_and_nothing_else() {
    let (owner, friend, thief) = (key(1), key(2), key(3));
    let token = Token::issue(&owner, grant(&friend, &[Right::Start, Right::Console]));
    let asked = request(&friend, Right::Start);
    let check = |owners: &[Principal], request: &Request| token.check(owners, request, never);
    let owners = [owner.public()];
    assert_eq!(check(&owners, &asked), Ok(()));
    assert_eq!(check(&[thief.public()], &asked), Err(Refusal::Owner));
    assert_eq!(check(&[], &asked), Err(Refusal::Owner));
    let stolen = request(&thief, Right::Start);
    assert_eq!(check(&owners, &stolen), Err(Refusal::Audience));
    let delete = request(&friend, Right::Delete);
    assert_eq!(check(&owners, &delete), Err(Refusal::Right(Right::Delete)));
    let other = Request {
        resource: Resource::Vm(VmId([8; 32])),
        ..asked
    };
    assert_eq!(check(&owners, &other), Err(Refusal::Resource));
    assert_eq!(
        token.check(&owners, &asked, |_| true),
        Err(Refusal::Revoked)
    );
}

#[test]
fn a_token_is_valid_from_its_start_until_its_end() {
    let (owner, friend) = (key(1), key(2));
    let token = Token::issue(&owner, grant(&friend, &[Right::Start]));
    let at = |now: u64| {
        let request = Request {
            now,
            ..request(&friend, Right::Start)
        };
        token.check(&[owner.public()], &request, never)
    };
    assert_eq!(at(NOW - 2), Err(Refusal::Early(Duration::from_secs(2))));
    assert_eq!((at(NOW), at(NOW + 3599)), (Ok(()), Ok(())));
    assert_eq!(at(NOW + 3600), Err(Refusal::Expired(Duration::ZERO)));
    let mut endless = grant(&friend, &[Right::Start]);
    endless.until = u64::MAX;
    let token = Token::issue(&owner, endless);
    let late = Request {
        now: NOW + MAX_LIFE.as_secs(),
        ..request(&friend, Right::Start)
    };
    assert_eq!(token.until(), NOW + MAX_LIFE.as_secs());
    let checked = token.check(&[owner.public()], &late, never);
    assert_eq!(checked, Err(Refusal::Expired(Duration::ZERO)));
}

#[test]
fn passing_a_token_on_can_only_narrow_it() {
    let (owner, friend, guest) = (key(1), key(2), key(3));
    let token = Token::issue(&owner, grant(&friend, &[Right::Start, Right::Console]));
    let mut wider = grant(&guest, &[Right::Console, Right::Delete]);
    wider.until = NOW + 1_000_000;
    let passed = token.pass_on(&friend, wider).unwrap();
    let owners = [owner.public()];
    let ask = |asker: &KeyPair, right| passed.check(&owners, &request(asker, right), never);
    assert_eq!(ask(&guest, Right::Console), Ok(()));
    assert_eq!(ask(&guest, Right::Start), Err(Refusal::Right(Right::Start)));
    assert_eq!(
        ask(&guest, Right::Delete),
        Err(Refusal::Right(Right::Delete))
    );
    assert_eq!(ask(&friend, Right::Console), Err(Refusal::Audience));
    assert_eq!(passed.until(), NOW + 3600);
    assert_eq!(passed.rights().iter().collect::<Vec<_>>(), [Right::Console]);
    assert!(
        token.pass_on(&guest, wider).is_none(),
        "it is not the guest's"
    );
}

#[test]
fn a_token_is_passed_on_three_times_and_no_more() {
    let keys: Vec<KeyPair> = (1..=6).map(key).collect();
    let mut token = Token::issue(&keys[0], grant(&keys[1], &[Right::See]));
    for pair in keys.windows(2).skip(1).take(3) {
        token = token
            .pass_on(&pair[0], grant(&pair[1], &[Right::See]))
            .unwrap();
    }
    let asked = request(&keys[4], Right::See);
    assert_eq!(token.check(&[keys[0].public()], &asked, never), Ok(()));
    assert!(
        token
            .pass_on(&keys[4], grant(&keys[5], &[Right::See]))
            .is_none()
    );
    assert!(
        token.to_bytes().len() <= MAX_BYTES,
        "{}",
        token.to_bytes().len()
    );
    assert_eq!(token.to_string().parse(), Ok(token));
}

#[test]
fn links_of_two_tokens_make_no_third() {
    let (owner, friend, guest) = (key(1), key(2), key(3));
    let small = Token::issue(&owner, grant(&friend, &[Right::See]));
    let large = Token::issue(&owner, grant(&friend, &[Right::See, Right::Delete]));
    let passed = small
        .pass_on(&friend, grant(&guest, &[Right::See, Right::Delete]))
        .unwrap();
    let mixed = Token {
        links: vec![large.links[0].clone(), passed.links[1].clone()],
    };
    let asked = request(&guest, Right::Delete);
    assert_eq!(
        mixed.check(&[owner.public()], &asked, never),
        Err(Refusal::Forged)
    );
    // The owner's link alone, made out to the guest.
    let mut renamed = large.clone();
    renamed.links[0].grant.audience = guest.public();
    assert_eq!(
        renamed.check(&[owner.public()], &asked, never),
        Err(Refusal::Forged)
    );
    // A link of the guest's own making behind the owner's.
    let own = Link::sign(
        &guest,
        grant(&guest, &[Right::Delete]),
        Some(&large.links[0]),
    );
    let usurped = Token {
        links: vec![large.links[0].clone(), own],
    };
    assert_eq!(
        usurped.check(&[owner.public()], &asked, never),
        Err(Refusal::Forged)
    );
}

#[test]
fn amounts_bound_each_request() {
    let (owner, friend) = (key(1), key(2));
    let host = Resource::Host(p2pvm_overlay::MemberId(owner.public()));
    let amounts = Amounts {
        memory_mib: Some(512),
        ..Amounts::default()
    };
    let token = Token::issue(
        &owner,
        Grant {
            resource: host,
            amounts,
            ..grant(&friend, &[Right::Create])
        },
    );
    let ask = |memory_mib: Option<u64>| {
        let request = Request {
            resource: host,
            amounts: Amounts {
                memory_mib,
                ..Amounts::default()
            },
            ..request(&friend, Right::Create)
        };
        token.check(&[owner.public()], &request, never)
    };
    assert_eq!((ask(Some(1)), ask(Some(512))), (Ok(()), Ok(())));
    assert_eq!(ask(Some(513)), Err(Refusal::Amount("memory")));
    assert_eq!(ask(None), Err(Refusal::Amount("memory")));
}

#[test]
fn other_and_damaged_texts_are_refused_with_the_reason() {
    let token = Token::issue(&key(1), grant(&key(2), &[Right::See]));
    let text = token.to_string();
    assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
    let error = |text: &str| text.parse::<Token>().unwrap_err();
    assert_eq!(error("p2pvm1abc"), ParseTokenError::Prefix);
    assert_eq!(error(&text[..text.len() - 8]), ParseTokenError::Damaged);
    assert_eq!(error(&format!("{text}{text}")), ParseTokenError::Damaged);
    assert_eq!(error(PREFIX), ParseTokenError::Damaged);
    let mut newer = token.to_bytes();
    newer[0] = 2;
    assert_eq!(Token::from_bytes(&newer), Err(ParseTokenError::Version(2)));
    let mut longer = token.to_bytes();
    longer.push(0);
    assert_eq!(Token::from_bytes(&longer), Err(ParseTokenError::Damaged));
}

/// The bytes of version 1, so that later versions go on reading them.
#[test]
fn the_wire_format_stays_as_it_was_published() {
    let mut token = Token::issue(&key(1), grant(&key(2), &[Right::See, Right::Stop]));
    token.links[0].serial = [9; 16];
    let bytes = token.to_bytes();
    // Version, one link, the issuer; the VM, its id; the rights' bits.
    assert_eq!(bytes[..2], [1, 1]);
    assert_eq!(bytes[2..34], key(1).public());
    assert_eq!((bytes[34], &bytes[35..67]), (0, &[7; 32][..]));
    assert_eq!(bytes[67], 0b101);
    assert_eq!(bytes[68..100], key(2).public());
    assert_eq!(
        bytes[100..110],
        [128, 164, 167, 218, 6, 144, 192, 167, 218, 6]
    );
    assert_eq!(bytes[110..114], [0; 4]);
    assert_eq!(bytes[114..130], [9; 16]);
    assert_eq!(bytes.len(), 130 + 64);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,80}"
    ) {
        let _ = Token::from_bytes(&bytes);
        let _ = text.parse::<Token>();
        let _ = format!("{PREFIX}{text}").parse::<Token>();
    }

    #[test]
    fn a_changed_byte_spoils_a_token(at: prop::sample::Index, change in 1u8..) {
        let (owner, friend, guest) = (key(1), key(2), key(3));
        let token = Token::issue(&owner, grant(&friend, &[Right::Start]))
            .pass_on(&friend, grant(&guest, &[Right::Start]))
            .unwrap();
        let asked = request(&guest, Right::Start);
        prop_assert_eq!(token.check(&[owner.public()], &asked, never), Ok(()));
        let mut bytes = token.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        if let Ok(changed) = Token::from_bytes(&bytes) {
            prop_assert!(changed.check(&[owner.public()], &asked, never).is_err());
        }
    }

    #[test]
    fn a_chain_allows_what_each_of_its_links_allows(
        sets in prop::collection::vec(0u32..512, 1..=4),
        ends in prop::collection::vec(0u64..100, 4), right in 0usize..9, now in 0u64..100,
    ) {
        let right = Right::ALL[right];
        let link = |at: usize| Grant {
            rights: Right::ALL.into_iter().filter(|r| sets[at] & (1 << *r as u32) != 0).collect(),
            until: NOW + ends[at],
            ..grant(&key(at as u8 + 2), &[])
        };
        let mut token = Token::issue(&key(1), link(0));
        for at in 1..sets.len() {
            token = token.pass_on(&key(at as u8 + 1), link(at)).unwrap();
        }
        let asked = Request {
            now: NOW + now,
            ..request(&key(sets.len() as u8 + 1), right)
        };
        let all = (0..sets.len()).all(|at| link(at).rights.has(right) && now < ends[at]);
        prop_assert_eq!(token.check(&[key(1).public()], &asked, never).is_ok(), all);
        prop_assert_eq!(all, token.rights().has(right) && NOW + now < token.until());
    }
}
