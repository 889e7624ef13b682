//! A guest's console, as a person uses it.

use p2pvm_lab::lab::Lab;
use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Types a line into a guest's console, if any, and waits until it shows `text`.
pub fn console(lab: &Lab, host: &str, vm: &str, line: &str, text: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2pvm"));
    command
        .args(["vm", "console", vm])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut console = lab.testbed().spawn(host, &mut command).unwrap();
    let (mut keys, mut screen) = (
        console.stdin.take().unwrap(),
        console.stdout.take().unwrap(),
    );
    let wanted = text.to_owned();
    let reader = std::thread::spawn(move || {
        let (mut seen, mut buffer) = (String::new(), [0u8; 1024]);
        while let Ok(n @ 1..) = screen.read(&mut buffer) {
            seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            if seen.contains(&wanted) {
                break;
            }
        }
        seen
    });
    if !line.is_empty() {
        keys.write_all(format!("\n{line}\n").as_bytes()).unwrap();
    }
    let began = Instant::now();
    while !reader.is_finished() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(100));
    }
    console.kill().unwrap();
    console.wait().unwrap();
    let seen = reader.join().unwrap();
    assert!(
        seen.contains(text),
        "'{text}' is not on {vm}'s console: {seen}"
    );
}
