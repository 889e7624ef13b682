//! Puts the files of `web/dist` into the program, if the front end was built (`make web`); without
//! them, or without Node on this machine, the program builds all the same and serves a page that
//! says so.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    let dist =
        Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../web/dist");
    // The directory is always there (it keeps a .gitignore), so that cargo sees a build that comes
    // later.
    println!("cargo:rerun-if-changed={}", dist.display());
    println!("cargo:rerun-if-changed=build.rs");
    let mut files = Vec::new();
    if dist.join("index.html").exists() {
        collect(&dist, "", &mut files)?;
    }
    files.sort();
    let rows: String = files
        .iter()
        .map(|(name, path)| format!("    ({name:?}, include_bytes!({path:?})),\n"))
        .collect();
    let table = format!(
        "/// Every file of the front end, by its path.\npub const FILES: &[(&str, &[u8])] = \
            &[\n{rows}];\n"
    );
    fs::write(
        Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("dashboard_files.rs"),
        table,
    )
}

fn collect(dir: &Path, below: &str, files: &mut Vec<(String, String)>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{below}{name}/"), files)?;
        } else {
            let path = entry.path().canonicalize()?;
            files.push((
                format!("{below}{name}"),
                path.to_string_lossy().into_owned(),
            ));
        }
    }
    Ok(())
}
