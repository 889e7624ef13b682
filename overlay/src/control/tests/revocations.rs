//! How members that know many revocations learn what they lack.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_with_many_revocations_learn_what_they_lack() {
    for is_of_the_first_release in [false, true] {
        let world = World::new(1);
        let first = world.first().await;
        let issuer = Issuer::root(&world.root);
        let of = |n: u8| {
            let target = Target::Member(MemberId([n; 32]));
            Revocation::issue(&issuer, world.network.id, target, UnixTime::now())
        };
        let all: Vec<Revocation> = (0..100).map(of).collect();
        let identity = Identity::generate();
        let certificate = world.certify(&identity, "second", false);
        let config = world.config(identity, certificate, first.listen_addrs());
        for (trust, known) in [
            (&first.shared.door.trust, &all[..99]),
            (&config.trust, &all[1..]),
        ] {
            for revocation in known {
                assert_eq!(trust.add_revocation(revocation.clone()), Ok(true));
            }
        }
        if is_of_the_first_release {
            first.shared.door.be_of_the_first_release();
        }
        let second = Control::start(config).await.unwrap();
        let known = |node: &Control| node.shared.door.trust.revocations().len();
        eventually("both know all revocations", || {
            known(&first) == all.len() && known(&second) == all.len()
        })
        .await;
    }
}
