//! Where an overloaded node offers a VM with traffic: nearer to the members that it exchanges
//! traffic with, as far as the loads allow.

use p2pvm_autonomic::{
    Input, LoadReport, LoadVector, LocalLoad, Manager, Message, Millis, Output, Placement, Talk,
    VmLoad,
};
use p2pvm_overlay::{MemberId, VmId, coordinates::Coordinate};

const ME: MemberId = MemberId([1; 32]);
const NEAR: MemberId = MemberId([2; 32]);
const FAR: MemberId = MemberId([3; 32]);
const FRIEND: MemberId = MemberId([4; 32]);
const VM: VmId = VmId([9; 32]);

fn at(ms: i32) -> Option<Coordinate> {
    Some(
        postcard::from_bytes(&postcard::to_allocvec(&([ms * 1000, 0, 0], 500u32, 100u16)).unwrap())
            .unwrap(),
    )
}

/// The peer that gets the offer of a VM which exchanges `rate` bytes a second with a guest of
/// FRIEND, 100 ms away, and the explanation. NEAR is beside FRIEND, FAR on the other side.
fn offered(near: f32, far: f32, rate: f64, load: f64) -> Option<(MemberId, String)> {
    let mut manager = Manager::new(ME, Placement::default(), 1);
    let heard = |member, cpu, ms| {
        let load = LoadVector {
            member,
            seq: 1,
            cpu,
            cpus: 4,
            memory_used_mib: 1,
            memory_total_mib: 8192,
            vms: 0,
            place: at(ms),
        };
        LoadReport { load, age_ms: 0 }
    };
    let entries = vec![heard(NEAR, near, 95), heard(FAR, far, -100)];
    manager.handle(
        Millis(0),
        Input::Received(NEAR, Message::ShuffleReply(entries)),
    );
    for second in 1..=6 {
        let talks = vec![Talk {
            member: FRIEND,
            rate,
            place: at(100),
        }];
        let vms = vec![VmLoad {
            vm: VM,
            cpu: 0.4,
            memory_mib: 512,
            movable: true,
            talks,
        }];
        let local = LocalLoad {
            cpu: load,
            cpus: 4,
            memory_used_mib: 2048,
            memory_total_mib: 8192,
            vms,
            place: at(0),
        };
        manager.handle(Millis(second * 1000), Input::LocalLoad(local));
        manager.handle(Millis(second * 1000), Input::Tick);
    }
    let outputs: Vec<Output> = std::iter::from_fn(|| manager.poll()).collect();
    outputs.iter().find_map(|output| match output {
        Output::Send(to, Message::Offer(_)) => {
            Some((*to, manager.explain(VM).last().unwrap().to_string()))
        }
        _ => None,
    })
}

#[test]
fn of_equally_loaded_peers_the_one_nearer_to_the_traffic_is_asked() {
    let (to, said) = offered(0.25, 0.2, 1e6, 1.0).unwrap();
    assert_eq!(to, NEAR, "{said}");
    assert!(
        said.contains("its traffic comes") && said.contains("nearer"),
        "{said}"
    );
    let (to, said) = offered(0.25, 0.19, 1000.0, 1.0).unwrap();
    assert_eq!(
        to, FAR,
        "the less loaded one, as there is hardly any traffic: {said}"
    );
    assert!(!said.contains("traffic"), "{said}");
}

#[test]
fn load_rules() {
    let (to, said) = offered(0.5, 0.2, 1e9, 1.0).unwrap();
    assert_eq!(
        to, FAR,
        "the nearer one is busier by more than traffic may weigh: {said}"
    );
    assert!(said.contains("farther"), "{said}");
    assert_eq!(
        offered(0.2, 0.2, 1e9, 0.5),
        None,
        "a calm node moves nothing for traffic alone"
    );
    assert_eq!(
        offered(0.7, 0.7, 1e9, 1.0),
        None,
        "no peer with room, no offer"
    );
}
