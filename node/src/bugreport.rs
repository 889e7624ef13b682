//! `p2pvm bugreport`: one file with what a developer asks for first: versions, settings, the
//! doctor's page, the log's end, and a running daemon's answers.
//!
//! It never reads keys. It removes invites, which are keys as well, from every file, because a log
//! or a settings file may contain one. Names and addresses stay in, because most questions are
//! about them; the first file in the archive says so.

use crate::{cli::Context, doctor};
use flate2::{Compression, write::GzEncoder};
use p2pvm_api::{AnswerMissing, Doing, Outcome, ReportWritten, client::Client};
use p2pvm_daemon::{layout::Layout, membership::INVITE_PREFIX, service};
use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

/// How many lines of the log are included.
const LOG_LINES: usize = 5000;
/// The daemon's answers and the names of their files.
const ASKED: [(&str, &str); 7] = [
    ("/status", "status.json"),
    ("/peers", "peers.json"),
    ("/cluster/vms", "vms.json"),
    ("/decisions", "decisions.json"),
    ("/netcheck", "netcheck.json"),
    ("/traffic", "traffic.json"),
    ("/metrics?json=true", "metrics.json"),
];
/// How long an answer may take before the report says that it is missing.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How many letters after the prefix make an invite; fewer are a mention of it in a sentence.
const INVITE_AT_LEAST: usize = 16;
/// The text in place of an invite.
const CUT: &str = "<invite cut out>";

const README: &str = "Made by 'p2pvm bugreport'. It holds no key and no invite. It does hold \
    names of members and VMs, their addresses,\n\
    and the end of this node's log: read it before you give it to somebody who should not know \
    them.\n";

/// Writes the report and prints its name.
pub async fn run(context: &Context, out: Option<PathBuf>) -> Outcome<()> {
    let time = humantime::format_rfc3339_seconds(SystemTime::now())
        .to_string()
        .replace([':', '-'], "");
    let name = format!("p2pvm-report-{time}");
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let files = gather(context).await;
    let archive = pack(&name, &files).doing("packing the report")?;
    // Only its owner can read it; an existing file is not overwritten.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&out)
        .doing(format_args!("cannot write {}", out.display()))?;
    file.write_all(&archive)
        .doing(format_args!("cannot write {}", out.display()))?;
    if context.json {
        return crate::cli::print::json(&ReportWritten {
            bytes: archive.len() as u64,
            file: out,
        });
    }
    println!(
        "{} ({}): it contains names and addresses, but no keys and no invites",
        out.display(),
        indicatif::HumanBytes(archive.len() as u64)
    );
    Ok(())
}

/// The report's files, without secrets.
async fn gather(context: &Context) -> Vec<(String, String)> {
    let layout = &context.layout;
    let mut files = vec![
        ("README".to_owned(), README.to_owned()),
        ("versions.txt".to_owned(), versions()),
    ];
    let page = doctor::examine(context).await;
    files.push((
        "doctor.json".to_owned(),
        serde_json::to_string_pretty(&page).unwrap_or_default(),
    ));
    files.push((
        "node.toml".to_owned(),
        fs::read_to_string(layout.config()).map_or_else(
            |e| format!("# not read: {}\n", p2pvm_host::chain(&e)),
            |text| without_headers(&text),
        ),
    ));
    files.push(("state.txt".to_owned(), listing(layout)));
    files.push((
        "daemon.log".to_owned(),
        service::log_tail(layout, LOG_LINES).await.join("\n"),
    ));
    for (path, name) in ASKED {
        let asked = async {
            let mut client: Client = context.daemon().await?;
            client.text(path).await
        };
        let text = match tokio::time::timeout(ANSWER_LIMIT, asked).await {
            Ok(Ok(answer)) => indented(answer),
            Ok(Err(failure)) => missing(failure.message),
            Err(_) => missing("no answer in time".to_owned()),
        };
        files.push((name.to_owned(), text));
    }
    files
        .into_iter()
        .map(|(name, text)| (name, without_invites(&text)))
        .collect()
}

/// An answer with line breaks, for people. It is read as no type, so that every field stays,
/// whatever version the daemon is of.
fn indented(answer: String) -> String {
    let value: Result<serde_json::Value, _> = serde_json::from_str(&answer);
    value
        .and_then(|value| serde_json::to_string_pretty(&value))
        .unwrap_or(answer)
}

/// The file in place of an answer.
fn missing(missing: String) -> String {
    serde_json::to_string(&AnswerMissing { missing }).unwrap_or_default()
}

fn versions() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    format!(
        "p2pvm {}\n{}{}",
        env!("CARGO_PKG_VERSION"),
        read("/proc/version"),
        read("/etc/os-release")
    )
}

/// Settings without `[traces] headers`, which may be secret. Settings that cannot be parsed are
/// left out, because the secret's place in them is unknown.
fn without_headers(settings: &str) -> String {
    let table = match settings.parse::<toml::Table>() {
        Ok(table) => table,
        Err(e) => {
            return format!(
                "# left out, because it may contain secrets; it cannot be read: {}\n",
                e.message()
            );
        }
    };
    let headers = table
        .get("traces")
        .and_then(|traces| traces.get("headers"))
        .and_then(toml::Value::as_table);
    let Some(headers) = headers.filter(|headers| !headers.is_empty()) else {
        return settings.to_owned();
    };
    let names: Vec<_> = headers.keys().map(String::as_str).collect();
    let mut rest = table.clone();
    if let Some(traces) = rest.get_mut("traces").and_then(toml::Value::as_table_mut) {
        traces.remove("headers");
    }
    format!(
        "# without comments and without [traces] headers, which names {}\n{rest}",
        names.join(", ")
    )
}

/// Names and sizes in the state directory, one level deep; no content.
fn listing(layout: &Layout) -> String {
    let entries = fs::read_dir(layout.dir()).into_iter().flatten().flatten();
    let mut lines: Vec<String> = entries
        .filter_map(|e| {
            let meta = e.metadata().ok()?;
            let kind = if meta.is_dir() { "directory" } else { "file" };
            Some(format!(
                "{:12} {kind:10} {}\n",
                meta.len(),
                e.file_name().to_string_lossy()
            ))
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// The text with every invite cut out, in small letters or in capitals, as in QR codes.
fn without_invites(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    let is_letter = |c: char| c.is_ascii_alphanumeric();
    // Same length as `rest`, byte by byte: only ASCII letters change.
    let mut lower = rest.to_ascii_lowercase();
    while let Some(at) = lower.find(INVITE_PREFIX) {
        let body = at + INVITE_PREFIX.len();
        let length = rest[body..].chars().take_while(|c| is_letter(*c)).count();
        clean.push_str(&rest[..at]);
        clean.push_str(if length >= INVITE_AT_LEAST {
            CUT
        } else {
            &rest[at..body + length]
        });
        rest = &rest[body + length..];
        lower = rest.to_ascii_lowercase();
    }
    clean + rest
}

fn pack(name: &str, files: &[(String, String)]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (file, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
        );
        archive.append_data(&mut header, format!("{name}/{file}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_to_a_collector_stays_out() {
        assert_eq!(without_headers("# mine\nport = 1\n"), "# mine\nport = 1\n");
        for secret in [
            "[traces]\nheaders = { authorization = \"hush\" }\n",
            "[traces.headers]\nauthorization = 'hush'\n",
        ] {
            let clean = without_headers(&format!("port = 1\n{secret}"));
            assert!(
                clean.contains("port = 1")
                    && clean.contains("authorization")
                    && !clean.contains("hush"),
                "{clean}"
            );
        }
        let broken = without_headers("port = \n[traces]\nheaders = { authorization = \"hush\" }");
        assert!(
            broken.contains("left out") && !broken.contains("hush"),
            "{broken}"
        );
    }

    #[test]
    fn an_invite_is_cut_out_wherever_it_stands_and_the_rest_stays() {
        let invite = format!("p2pvm1{}", "abc234".repeat(40));
        let text = format!(
            "begin {invite} middle '{}'\nend: one begins with p2pvm1..., p2pvm1abc",
            invite.to_ascii_uppercase()
        );
        assert_eq!(
            without_invites(&text),
            format!("begin {CUT} middle '{CUT}'\nend: one begins with p2pvm1..., p2pvm1abc")
        );
        assert_eq!(without_invites("Grüße p2pvm1"), "Grüße p2pvm1");
    }

    #[test]
    fn the_archive_is_one_that_tar_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar.gz");
        fs::write(
            &path,
            pack("r", &[("a".to_owned(), "text".to_owned())]).unwrap(),
        )
        .unwrap();
        let output = std::process::Command::new("tar")
            .args(["xzOf", path.to_str().unwrap(), "r/a"])
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"text");
    }
}
