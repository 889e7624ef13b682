//! The bytes of every request, answer and frame.

use super::*;
use crate::golden::{self, variants};
use p2pvm_overlay::identity::KeyPair;

const MANIFEST: ManifestId = ManifestId(ChunkId([0x11; 32]));
const LABEL: &str = "snapshot-web";
const TO: MemberId = MemberId([0x22; 32]);

fn ids() -> Vec<ChunkId> {
    vec![ChunkId([1; 32]), ChunkId([2; 32])]
}

fn release(proof: Option<Signature>) -> Request {
    Request::Release {
        manifest: MANIFEST,
        label: LABEL.into(),
        proof,
    }
}

fn requests() -> Vec<(&'static str, Request)> {
    let keys = KeyPair::from_seed(&[0x33; 32]);
    let proof = keys.sign(RELEASE_DOMAIN, &release_message(MANIFEST, LABEL, TO));
    variants! {
        Request::Has(_) => { "request.has": Request::Has(ids()) }
        Request::Keep { .. } => {
            "request.keep": Request::Keep {
                manifest: MANIFEST,
                label: LABEL.into(),
                providers: vec![TO, MemberId([0x44; 32])],
                wait_ms: 9_000,
            }
        }
        Request::Release { proof: None, .. } => { "request.release": release(None) }
        Request::Release { proof: Some(_), .. } => {
            "request.release-proved": release(Some(proof))
        }
    }
}

fn answers() -> Vec<(&'static str, Answer)> {
    variants! {
        Answer::Has(_) => { "answer.has": Answer::Has(vec![0b101, 0b10]) }
        Answer::Keeping(_) => {
            "answer.keeping": Answer::Keeping(Progress { done_bytes: 300, total_bytes: 70_000 })
        }
        Answer::Kept => { "answer.kept": Answer::Kept }
        Answer::Failed(_) => { "answer.failed": Answer::Failed("no room".into()) }
        Answer::Released => { "answer.released": Answer::Released }
    }
}

fn frames() -> Vec<(&'static str, Frame)> {
    variants! {
        Frame::Want(_) => { "frame.want": Frame::Want(ids()) }
        Frame::Chunk(_, _) => { "frame.chunk": Frame::Chunk(ChunkId([3; 32]), vec![0, 9, 8, 7]) }
        Frame::Missing(_) => { "frame.missing": Frame::Missing(ChunkId([4; 32])) }
    }
}

fn written(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    futures::executor::block_on(frame.write(&mut bytes)).expect("a growing buffer");
    bytes
}

fn read(mut bytes: &[u8]) -> Option<Frame> {
    let frame = futures::executor::block_on(Frame::read(&mut bytes));
    frame.ok().flatten()
}

#[test]
fn members_of_the_previous_version_read_every_request_for_chunks() {
    golden::check("exchange", |golden| {
        golden.messages(requests(), Request::to_bytes, |bytes| {
            Request::parse(bytes).ok()
        });
        golden.messages(answers(), Answer::to_bytes, |bytes| {
            Answer::parse(bytes).ok()
        });
        golden.messages(frames(), written, read);
        let signed = release_message(MANIFEST, LABEL, TO);
        golden.bytes("release.signed", &signed);
        golden.bytes("release.domain", RELEASE_DOMAIN.as_bytes());
        golden.bytes("service", super::super::SERVICE.as_bytes());
    });
}
