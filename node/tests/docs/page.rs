//! A page of the documentation as something to run: its machines, its blocks, and what a hidden
//! remark asks of the test.
//!
//! What a reader sees is plain: a block of kind `console` is a terminal, where a line `attic#
//! COMMAND` is typed on the machine attic and what follows is its output. What only the test needs
//! stands in HTML comments, which no reader sees: `<!-- machines ... -->` once (the emulated wide
//! area, as a sites file has it) and `<!-- test: WORDS; WORDS -->` before a block or where
//! something happens to a machine. A block that cannot be run says so where it begins, with the
//! reason: ```` ```console not-run="it burns a CD" ````.

use std::{fs, ops::Range, path::Path};

/// A hidden remark, in words.
pub type Remark = String;

/// What a page consists of, in order; the rest is prose.
pub enum Part {
    /// A hidden remark that stands alone: something happens to a machine.
    Happens(Remark),
    /// A fenced block.
    Block(Block),
}

/// A fenced block.
pub struct Block {
    /// The first word behind the fence.
    pub kind: String,
    /// The rest of that line.
    pub info: String,
    /// Remarks for it.
    pub remarks: Vec<Remark>,
    /// Its lines.
    pub lines: Vec<String>,
    /// Where they are in the page.
    pub place: Range<usize>,
}

/// A page.
pub struct Page {
    /// Its name, for messages.
    pub name: String,
    /// All its lines.
    pub lines: Vec<String>,
    /// The sites file in it, if it has machines.
    pub sites: Option<String>,
    /// What there is to do.
    pub parts: Vec<Part>,
}

/// One command with what it shows.
pub struct Step {
    /// The machine; empty for a block that only ends what another began.
    pub host: String,
    /// What is typed.
    pub command: String,
    /// What the page shows.
    pub shown: Vec<String>,
}

/// Remarks that belong to the block behind them.
const FOR_BLOCKS: [&str; 8] = [
    "until",
    "fails",
    "head",
    "tail",
    "background",
    "contains",
    "numbers",
    "same",
];

impl Page {
    /// Reads a page of the repository.
    pub fn read(path: &str) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{path}: {e}"));
        Self::parse(path, &text)
    }

    /// Takes a page apart.
    pub fn parse(name: &str, text: &str) -> Self {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut page = Self {
            name: name.to_owned(),
            lines: lines.clone(),
            sites: None,
            parts: Vec::new(),
        };
        let (mut at, mut remarks) = (0, Vec::new());
        while at < lines.len() {
            let line = lines[at].trim_end();
            at += 1;
            if line == "<!-- machines" {
                let end = page.find(at, "-->");
                page.sites = Some(lines[at..end].join("\n"));
                at = end + 1;
            } else if let Some(said) = line
                .strip_prefix("<!-- test: ")
                .and_then(|rest| rest.strip_suffix(" -->"))
            {
                for remark in said.split("; ") {
                    if FOR_BLOCKS.contains(&remark.split(' ').next().unwrap_or_default()) {
                        remarks.push(remark.to_owned());
                    } else {
                        page.parts.push(Part::Happens(remark.to_owned()));
                    }
                }
            } else if let Some(info) = line.strip_prefix("```") {
                let end = page.find(at, "```");
                let (kind, info) = info.split_once(' ').unwrap_or((info, ""));
                page.parts.push(Part::Block(Block {
                    kind: kind.to_owned(),
                    info: info.to_owned(),
                    remarks: std::mem::take(&mut remarks),
                    lines: lines[at..end].to_vec(),
                    place: at..end,
                }));
                at = end + 1;
            }
        }
        assert!(
            remarks.is_empty(),
            "{name}: remarks without a block behind them: {remarks:?}"
        );
        page
    }

    fn find(&self, from: usize, end: &str) -> usize {
        let found = self.lines[from..]
            .iter()
            .position(|line| line.trim_end() == end);
        from + found.unwrap_or_else(|| panic!("{}:{from}: no {end} after this", self.name))
    }

    /// All blocks.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.parts.iter().filter_map(|part| {
            if let Part::Block(block) = part {
                Some(block)
            } else {
                None
            }
        })
    }

    /// Code in running text: what stands between backquotes outside of blocks.
    pub fn inline_code(&self) -> Vec<String> {
        let in_block = |n: usize| self.blocks().any(|b| b.place.contains(&n));
        let prose: Vec<&str> = self
            .lines
            .iter()
            .enumerate()
            .filter(|(n, _)| !in_block(*n))
            .map(|(_, line)| line.as_str())
            .collect();
        prose
            .iter()
            .flat_map(|line| line.split('`').skip(1).step_by(2).map(str::to_owned))
            .collect()
    }

    /// The page with other lines in the places of blocks.
    pub fn with(&self, mut changes: Vec<(Range<usize>, Vec<String>)>) -> String {
        let mut lines = self.lines.clone();
        changes.sort_by_key(|(place, _)| std::cmp::Reverse(place.start));
        for (place, new) in changes {
            lines.splice(place, new);
        }
        lines.join("\n") + "\n"
    }
}

impl Block {
    /// Why it is not run, where it says so.
    pub fn not_run(&self) -> Option<&str> {
        let reason = self.info.strip_prefix("not-run=\"")?.strip_suffix('"')?;
        assert!(
            reason.len() >= 10,
            "line {}: a reason that says more, please",
            self.place.start
        );
        Some(reason)
    }

    /// What a remark named so says.
    pub fn remark(&self, name: &str) -> Option<&str> {
        self.remarks
            .iter()
            .find_map(|r| {
                r.strip_prefix(name)
                    .filter(|rest| rest.is_empty() || rest.starts_with(' '))
            })
            .map(str::trim)
    }

    /// The commands with what each shows. `hosts` are the machines' names.
    pub fn steps(&self, hosts: &[String]) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut open = false;
        for line in &self.lines {
            let prompt = hosts.iter().find_map(|host| {
                Some((host, line.strip_prefix(host.as_str())?.strip_prefix("# ")?))
            });
            match (prompt, steps.last_mut()) {
                // A command goes on behind a backslash.
                (None, Some(step)) if open => {
                    step.command = format!("{}\n{line}", step.command);
                    open = line.ends_with('\\');
                }
                (Some((host, command)), _) => {
                    open = command.ends_with('\\');
                    steps.push(Step {
                        host: host.clone(),
                        command: command.to_owned(),
                        shown: Vec::new(),
                    });
                }
                (None, Some(step)) => step.shown.push(line.clone()),
                (None, None) => {
                    assert!(
                        line.starts_with("^C"),
                        "line {}: output before a command: {line}",
                        self.place.start
                    );
                    steps.push(Step {
                        host: String::new(),
                        command: "^C".into(),
                        shown: vec![line.clone()],
                    });
                }
            }
        }
        steps
    }
}
