//! The ciphers that a link could use, by the two libraries that have them for this processor:
//! nanoseconds to seal and to open one datagram, in place and with the tag apart, as
//! `link::session` does it. Round by round over all of them, so that what else the machine does
//! falls on all alike; prints medians and all rounds. `cargo bench -p
//! p2pvm-overlay --no-default-features --bench aead`.

use p2pvm_figures::{Figure, Recorder};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// An ACK or a game's datagram, the usual QUIC datagram, a full WireGuard packet.
const SIZES: [usize; 3] = [64, 1200, 1420];
const ROUNDS: usize = 15;
/// Of one cipher at one size in one round, for sealing and opening each.
const SLICE: Duration = Duration::from_millis(20);
/// Datagrams between two looks at the clock.
const BATCH: u64 = 64;

/// Seals and opens datagrams under one key; the number is the nonce.
trait Aead {
    fn seal(&self, number: u64, datagram: &mut [u8]) -> [u8; 16];
    fn open(&self, number: u64, datagram: &mut [u8], tag: [u8; 16]) -> bool;
}

macro_rules! aead {
    ($name:ident, $library:ident) => {
        struct $name($library::aead::LessSafeKey);

        impl $name {
            fn new(algorithm: &'static $library::aead::Algorithm) -> Self {
                let key = vec![7; algorithm.key_len()];
                Self($library::aead::LessSafeKey::new(
                    $library::aead::UnboundKey::new(algorithm, &key).expect("as long as it says"),
                ))
            }

            fn nonce(number: u64) -> $library::aead::Nonce {
                let mut bytes = [0; 12];
                bytes[4..].copy_from_slice(&number.to_be_bytes());
                $library::aead::Nonce::assume_unique_for_key(bytes)
            }
        }

        impl Aead for $name {
            fn seal(&self, number: u64, datagram: &mut [u8]) -> [u8; 16] {
                let tag = self.0.seal_in_place_separate_tag(
                    Self::nonce(number),
                    $library::aead::Aad::empty(),
                    datagram,
                );
                tag.expect("it fits")
                    .as_ref()
                    .try_into()
                    .expect("all tags have 16 bytes")
            }

            fn open(&self, number: u64, datagram: &mut [u8], tag: [u8; 16]) -> bool {
                // Joined in the datagram's own buffer, as on the wire: both libraries have that.
                let len = datagram.len();
                datagram[len - 16..].copy_from_slice(&tag);
                self.0
                    .open_in_place(Self::nonce(number), $library::aead::Aad::empty(), datagram)
                    .is_ok()
            }
        }
    };
}

aead!(Ring, ring);
aead!(AwsLc, aws_lc_rs);

/// Nanoseconds of one call.
fn time(mut one: impl FnMut(u64)) -> f64 {
    let (began, mut calls) = (Instant::now(), 0);
    while began.elapsed() < SLICE {
        (calls..calls + BATCH).for_each(&mut one);
        calls += BATCH;
    }
    began.elapsed().as_nanos() as f64 / calls as f64
}

/// Sealing and opening `size` bytes.
fn measure(aead: &dyn Aead, size: usize) -> [f64; 2] {
    let mut datagram = vec![5; size + 16];
    let seal = time(|number| {
        black_box(aead.seal(number, &mut datagram[..size]));
    });
    let plain = vec![5; size + 16];
    let mut sealed = plain.clone();
    let tag = aead.seal(1, &mut sealed[..size]);
    // What was opened is no longer sealed: each begins with a copy, which both libraries pay alike
    // (some 20 ns).
    let open = time(|_| {
        datagram.copy_from_slice(&sealed);
        assert!(black_box(aead.open(1, &mut datagram, tag)), "genuine");
    });
    assert_eq!(datagram[..size], plain[..size]);
    [seal, open]
}

fn main() {
    let recorder = Recorder::from_environment();
    let ciphers: [(&str, Box<dyn Aead>); 6] = [
        (
            "ring AES-128-GCM",
            Box::new(Ring::new(&ring::aead::AES_128_GCM)),
        ),
        (
            "aws-lc-rs AES-128-GCM",
            Box::new(AwsLc::new(&aws_lc_rs::aead::AES_128_GCM)),
        ),
        (
            "ring AES-256-GCM",
            Box::new(Ring::new(&ring::aead::AES_256_GCM)),
        ),
        (
            "aws-lc-rs AES-256-GCM",
            Box::new(AwsLc::new(&aws_lc_rs::aead::AES_256_GCM)),
        ),
        (
            "ring ChaCha20-Poly1305",
            Box::new(Ring::new(&ring::aead::CHACHA20_POLY1305)),
        ),
        (
            "aws-lc-rs ChaCha20-Poly1305",
            Box::new(AwsLc::new(&aws_lc_rs::aead::CHACHA20_POLY1305)),
        ),
    ];
    let mut seen: Vec<[[Vec<f64>; 2]; SIZES.len()]> =
        ciphers.iter().map(|_| Default::default()).collect();
    for _ in 0..ROUNDS {
        for ((_, aead), seen) in ciphers.iter().zip(&mut seen) {
            for (size, seen) in SIZES.into_iter().zip(seen) {
                seen.iter_mut()
                    .zip(measure(aead.as_ref(), size))
                    .for_each(|(seen, time)| seen.push(time));
            }
        }
    }
    let mut figures = Vec::new();
    for (n, size) in SIZES.into_iter().enumerate() {
        for (way, what) in [(0, "seal"), (1, "open")] {
            for ((name, _), seen) in ciphers.iter().zip(&seen) {
                let rounds = seen[n][way].iter().copied();
                let what = (format!("{what}-{size}"), format!("{what} {size} bytes"));
                figures.push(Figure::new(&what.0, &what.1, "ns", rounds).of(*name));
            }
        }
    }
    println!("{}", Recorder::overview(&figures));
    let command = "cargo bench --profile dev -p p2pvm-overlay --no-default-features --bench aead";
    recorder
        .record("ciphers", command, &figures)
        .expect("the figures are written");
}
