//! Circles of files that span folders, found from the paths that files name: in `use`, and inline
//! (`child::f()`, `super::Item`). A folder's head (`name.rs` or `mod.rs`) belongs to the folder, so
//! a head and the files below it are no circle by themselves.
//!
//! Re-exports are followed to the file that has the item, so a caller depends on that file and not
//! on the head through which it names it. For the same reason a head's `pub use child::Item` is no
//! dependency of the head: it says where the item is. If the head's own code uses the item too, it
//! is one.
//!
//! Not seen: methods (a call through a type of another file counts by the import of the type), and
//! what macros expand to.

use std::collections::{BTreeMap, BTreeSet};

/// A module's path from the root of its crate; the root's own is empty.
pub type Module = Vec<String>;

/// How many re-exports are followed from one name.
const MAX_REEXPORTS: usize = 5;

/// What a `use` brings into a module: the name there, and the path it stands for.
type Imports = BTreeMap<String, Vec<String>>;

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn words(path: &str) -> Vec<String> {
    path.split("::")
        .map(|word| word.trim().to_owned())
        .collect()
}

/// The parts between the commas of a tree's braces; inner braces stay whole.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut found) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    found.push(&text[from..]);
    found
}

/// The paths of a `use`, each with the name that it gets.
fn expand(tree: &str, before: &[String], into: &mut Vec<(String, Vec<String>)>) {
    let tree = tree.trim();
    if let Some(inside) = tree.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        return parts(inside)
            .into_iter()
            .for_each(|part| expand(part, before, into));
    }
    let brace = tree.find('{').unwrap_or(tree.len());
    if let Some(at) = tree.find("::").filter(|at| *at < brace) {
        let path = [before, &[tree[..at].trim().to_owned()]].concat();
        return expand(&tree[at + 2..], &path, into);
    }
    let (item, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
    let path = match item.trim() {
        "" => return,
        "self" => before.to_vec(),
        item => [before, &[item.to_owned()]].concat(),
    };
    let name = match alias.trim() {
        "" => path.last().cloned().unwrap_or_default(),
        alias => alias.to_owned(),
    };
    into.push((name, path));
}

/// A `use` item.
struct Use {
    tree: String,
    /// Whether other modules may name what it brings through this one.
    is_public: bool,
}

/// Whether a text ends with a visibility, such as `pub` or `pub(crate)`.
fn ends_public(text: &str) -> bool {
    let text = text.trim_end();
    let text = match text.rsplit_once("pub(") {
        Some((before, inside)) if inside.find(')') == Some(inside.len() - 1) => before,
        _ => match text.strip_suffix("pub") {
            Some(before) => before,
            None => return false,
        },
    };
    !text.ends_with(is_word)
}

/// Splits a text into its `use` items and what is left.
fn uses(code: &str) -> (Vec<Use>, String) {
    let (mut found, mut rest) = (Vec::new(), String::new());
    for statement in code.split_inclusive(';') {
        let at = statement
            .rmatch_indices("use ")
            .map(|(at, _)| at)
            .find(|at| !statement[..*at].ends_with(is_word));
        match at.filter(|at| !statement[at + 4..].contains(['(', '='])) {
            Some(at) => {
                found.push(Use {
                    tree: statement[at + 4..].trim_end_matches(';').to_owned(),
                    is_public: ends_public(&statement[..at]),
                });
                rest.push_str(&statement[..at]);
            }
            None => rest.push_str(statement),
        }
    }
    (found, rest)
}

/// The paths of two words or more in a text without its `use` items.
fn inline(code: &str) -> BTreeSet<Vec<String>> {
    code.split(|c| !is_word(c) && c != ':')
        .filter(|text| text.contains("::"))
        .map(|text| words(text.trim_end_matches(':')))
        .collect()
}

/// A crate's modules, and what each imports.
struct Crate {
    modules: BTreeSet<Module>,
    imports: BTreeMap<Module, Imports>,
}

impl Crate {
    /// A module with what it imports, and the paths that its code names.
    fn read(&mut self, module: &Module, code: &str) -> BTreeSet<Vec<String>> {
        let (items, rest) = uses(code);
        let used: BTreeSet<&str> = rest.split(|c| !is_word(c)).collect();
        let (mut imports, mut paths) = (Imports::new(), BTreeSet::new());
        for item in items {
            let mut brought = Vec::new();
            expand(&item.tree, &[], &mut brought);
            for (name, path) in brought {
                let only_shown = item.is_public
                    && self.is_child(module, &path[0])
                    && !used.contains(name.as_str());
                if !only_shown {
                    paths.insert(path.clone());
                }
                imports.insert(name, path);
            }
        }
        for path in inline(&rest) {
            // A child has its own name; other first words may be imported ones.
            match imports.get(&path[0]) {
                Some(import) if !self.is_child(module, &path[0]) => {
                    paths.insert([import, &path[1..]].concat());
                }
                _ => {
                    paths.insert(path);
                }
            }
        }
        self.imports.insert(module.clone(), imports);
        paths
    }

    fn is_child(&self, module: &Module, name: &str) -> bool {
        let child = [module.as_slice(), &[name.to_owned()]].concat();
        self.modules.contains(&child)
    }

    /// A path as it stands in `module`, from the crate's root; none for other crates' paths.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Vec<String>> {
        let above = path.iter().take_while(|word| *word == "super").count();
        let (base, rest) = match path.first()?.as_str() {
            "crate" => (&[][..], &path[1..]),
            "self" => (&module[..], &path[1..]),
            "super" => (&module[..module.len().checked_sub(above)?], &path[above..]),
            first => {
                self.is_child(module, first).then_some(())?;
                (&module[..], path)
            }
        };
        Some([base, rest].concat())
    }

    /// The file that has the item of a path.
    fn file_of(&self, path: &[String], reexports: usize) -> Option<Module> {
        let known = (0..=path.len()).rev().map(|n| path[..n].to_vec());
        let module = known.into_iter().find(|m| self.modules.contains(m))?;
        let import = path
            .get(module.len())
            .and_then(|name| self.imports.get(&module)?.get(name));
        match import {
            Some(import) if reexports > 0 => {
                let target = self.absolute(&module, import)?;
                let rest = &path[module.len() + 1..];
                self.file_of(&[&target[..], rest].concat(), reexports - 1)
            }
            _ => Some(module),
        }
    }

    /// The folder of a file; the head of a folder belongs to it.
    fn folder(&self, module: &Module) -> Module {
        let is_head = |m: &&Module| m.len() > module.len() && m.starts_with(module);
        if self.modules.iter().any(|m| is_head(&m)) {
            return module.clone();
        }
        module[..module.len().saturating_sub(1)].to_vec()
    }
}

/// Every module that is reached from a module.
fn reached(edges: &BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> BTreeSet<Module> {
    let (mut found, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(module) = next.pop() {
        for to in &edges[module] {
            if found.insert(to.clone()) {
                next.push(to);
            }
        }
    }
    found
}

/// The circles of a crate's files that span folders; `files` has the code of each without comments,
/// strings and tests.
pub fn circles(files: &BTreeMap<Module, String>) -> Vec<BTreeSet<Module>> {
    let mut one = Crate {
        modules: files.keys().cloned().collect(),
        imports: BTreeMap::new(),
    };
    let named: BTreeMap<Module, BTreeSet<Vec<String>>> = files
        .iter()
        .map(|(module, code)| (module.clone(), one.read(module, code)))
        .collect();
    let edges: BTreeMap<Module, BTreeSet<Module>> = named
        .iter()
        .map(|(module, paths)| {
            let files = paths
                .iter()
                .filter_map(|path| one.file_of(&one.absolute(module, path)?, MAX_REEXPORTS))
                .filter(|to| to != module);
            (module.clone(), files.collect())
        })
        .collect();
    let below: BTreeMap<&Module, BTreeSet<Module>> =
        edges.keys().map(|m| (m, reached(&edges, m))).collect();
    let mut found = BTreeSet::new();
    for module in edges.keys() {
        let circle: BTreeSet<Module> = below[module]
            .iter()
            .filter(|other| below[other].contains(module))
            .cloned()
            .collect();
        let folders: BTreeSet<Module> = circle.iter().map(|m| one.folder(m)).collect();
        if folders.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|(path, code)| {
            let module = path.split('/').filter(|word| !word.is_empty());
            (module.map(str::to_owned).collect(), (*code).to_owned())
        });
        circles(&files.collect())
            .iter()
            .map(|circle| {
                let names: Vec<String> = circle.iter().map(|module| module.join("/")).collect();
                names.join(" ")
            })
            .collect()
    }

    #[test]
    fn folders_that_import_each_other_in_any_form_are_a_circle() {
        let ways = [
            "use crate::b::two::Item;",
            "use crate::{a::other, b::{self, two::{Item as It, More}}};",
            "use super::super::b::two::Item;",
            "fn f() { crate::b::two::go() }",
            // By the name that the head of the folder gives it.
            "use crate::b::Item;",
        ];
        for way in ways {
            let files = [
                ("", "mod a; mod b;"),
                ("a", "mod one; mod other;"),
                ("a/one", way),
                ("a/other", ""),
                ("b", "mod two; pub use two::Item;"),
                ("b/two", "pub(crate) use crate::a::one::Thing;"),
            ];
            assert_eq!(found(&files), ["a/one b/two"], "{way}");
        }
    }

    #[test]
    fn files_of_one_folder_and_its_head_may_import_each_other() {
        let files = [
            ("", "mod a; pub use a::one::Thing;"),
            ("a", "mod one; mod two; use one::Thing;"),
            ("a/one", "use super::two::Item; use crate::a::Head;"),
            ("a/two", "use super::one::Thing;"),
        ];
        assert!(found(&files).is_empty());
    }

    #[test]
    fn a_head_that_uses_its_child_is_part_of_the_circle() {
        let ways = [
            "mod state; use state::Machine;",
            "mod state; fn f() { state::deep::go() }",
            "mod state; pub use state::Machine; fn f(of: Machine) {}",
            "mod state; pub(crate) use state::{self, Machine}; fn f() { state::go() }",
        ];
        for head in ways {
            let files = [
                ("", "mod a;"),
                ("a", head),
                (
                    "a/state",
                    "pub mod deep; use super::Options; pub struct Machine(Options);",
                ),
                ("a/state/deep", "use super::Machine; pub fn go() {}"),
            ];
            let found = found(&files);
            assert!(
                found.len() == 1 && found[0].starts_with("a a/state"),
                "{head}: {found:?}"
            );
        }
    }

    #[test]
    fn showing_a_childs_item_is_no_dependency_of_the_head() {
        let files = [
            ("", "mod a;"),
            (
                "a",
                "mod state; pub use state::Machine; pub(crate) use state::deep::go;",
            ),
            ("a/state", "mod deep; use super::Options;"),
            ("a/state/deep", "use crate::a::Options; pub fn go() {}"),
        ];
        assert!(found(&files).is_empty());
    }

    #[test]
    fn one_way_only_is_no_circle() {
        let files = [
            ("", "mod a; mod b;"),
            ("a", "mod one;"),
            (
                "a/one",
                "use crate::b::two; use std::fmt; use serde::Serialize;",
            ),
            ("b", "pub mod two;"),
            ("b/two", "use std::{io, net::IpAddr};"),
        ];
        assert!(found(&files).is_empty());
    }
}
