//! The order of the crates: that of the first table of docs/ARCHITECTURE.md, so that the page and
//! the manifests cannot differ. A manifest also names what a crate's tests, benches and examples
//! import, so these count.

use super::read;

/// A member of the workspace, by its manifest.
pub struct Member {
    pub dir: String,
    pub name: String,
    /// The names of its dependencies.
    pub needs: Vec<String>,
}

/// The keys of a manifest's tables of dependencies, those for one target too.
fn dependencies(manifest: &toml::Table) -> Vec<String> {
    let tables = |of: &toml::Table| -> Vec<String> {
        let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
        kinds
            .iter()
            .filter_map(|kind| of.get(*kind)?.as_table())
            .flat_map(|t| t.keys().cloned())
            .collect()
    };
    let targets = manifest
        .get("target")
        .and_then(|t| t.as_table())
        .into_iter()
        .flat_map(|t| t.values());
    tables(manifest)
        .into_iter()
        .chain(targets.filter_map(|t| t.as_table()).flat_map(tables))
        .collect()
}

/// The workspace's members.
pub fn members() -> Vec<Member> {
    let workspace: toml::Table = read("Cargo.toml")
        .parse()
        .expect("the workspace's manifest");
    let listed = workspace["workspace"]["members"]
        .as_array()
        .expect("members are a list");
    let of = |dir: &toml::Value| {
        let dir = dir.as_str().expect("a member is a directory").to_owned();
        let manifest: toml::Table = read(&format!("{dir}/Cargo.toml"))
            .parse()
            .expect("a member's manifest");
        let name = manifest["package"]["name"]
            .as_str()
            .expect("a name")
            .to_owned();
        Member {
            dir,
            name,
            needs: dependencies(&manifest),
        }
    };
    listed.iter().map(of).collect()
}

/// The rows of a page's table of crates, the first: directory and name.
pub fn rows(page: &str) -> Vec<(String, String)> {
    let row = |line: &str| {
        let mut names = line.split('`').skip(1).step_by(2);
        let dir = names.next()?.trim_end_matches('/').to_owned();
        Some((dir, names.next()?.to_owned()))
    };
    page.lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .filter_map(row)
        .collect()
}

/// Where the manifests do not follow the table.
pub fn broken(rows: &[(String, String)], members: &[Member]) -> Vec<String> {
    let place = |name: &str| rows.iter().position(|(_, row)| row == name);
    let mut broken = Vec::new();
    for Member { dir, name, needs } in members {
        let Some(own) = place(name) else {
            broken.push(format!("{dir}/Cargo.toml: {name} has no row: add one"));
            continue;
        };
        if rows[own].0 != *dir {
            broken.push(format!("{name} is in {dir}/, not in {}/", rows[own].0));
        }
        let below = needs
            .iter()
            .filter(|needed| place(needed).is_some_and(|theirs| theirs >= own));
        broken.extend(below.map(|needed| {
            format!(
                "{dir}/Cargo.toml: {name} needs {needed}, whose row is below: move what both need \
                    into a crate above, or the row"
            )
        }));
    }
    let gone = rows
        .iter()
        .filter(|(_, row)| !members.iter().any(|member| member.name == *row));
    broken.extend(gone.map(|(_, row)| format!("{row} is no member of the workspace")));
    broken
}

#[test]
fn a_crate_without_a_row_or_below_its_user_breaks_the_order() {
    let page = "text\n\n| directory | crate |\n|---|---|\n| `low/` | `low` |\n\
        | `high/` | `high` | on `low` |\n\n| `a` | `b` |\n";
    let rows = rows(page);
    assert_eq!(rows.len(), 2, "{rows:?}");
    let member = |name: &str, needs: &[&str]| Member {
        dir: name.to_owned(),
        name: name.to_owned(),
        needs: needs.iter().map(|needed| (*needed).to_owned()).collect(),
    };
    let high = || member("high", &["low", "serde"]);
    assert!(self::broken(&rows, &[member("low", &[]), high()]).is_empty());
    for (members, said) in [
        (vec![member("low", &["high"]), high()], "low needs high"),
        (vec![member("low", &["low"]), high()], "low needs low"),
        (
            vec![member("low", &[]), high(), member("new", &[])],
            "new has no row",
        ),
        (vec![high()], "low is no member"),
    ] {
        let broken = broken(&rows, &members);
        assert!(broken.len() == 1 && broken[0].contains(said), "{broken:?}");
    }
}
