//! The operations on a testbed: run programs on its hosts, cut and heal links, kill and revive
//! hosts, show it, take it down.
//!
//! All use the plan in the state directory and the keeper's control socket. So they work alike
//! whether this process keeps the testbed ([`Testbed::up`]), a child of it ([`Testbed::up_by`]) or
//! an earlier process ([`Testbed::open`]).

mod status;

pub use crate::error::Error;
pub use status::{HostStatus, LinkStatus, Status};

use crate::{
    forwarder::Counters,
    keeper::{self, Keeper, Life},
    namespace,
    plan::{HOSTS_DIR, HostPlan, Plan},
    raise,
    root::{self, RootPlan},
    sites::{Nat, Properties, Shape, Sites},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    ffi::OsStr,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

/// A testbed that is up.
pub struct Testbed {
    plan: Plan,
    hold: Hold,
}

/// The part of the testbed that ends with this handle.
enum Hold {
    /// The testbed lives in this process.
    Keeper(Keeper),
    /// The testbed lives in a child that ends with this process.
    Child(TiedKeeper),
    /// Another process keeps it.
    Nothing,
}

/// A keeper process that takes its testbed down when its standard input ends.
struct TiedKeeper(Child);

impl TiedKeeper {
    fn end(&mut self) -> io::Result<()> {
        drop(self.0.stdin.take());
        self.0.wait().map(drop)
    }
}

impl Drop for TiedKeeper {
    fn drop(&mut self) {
        // An error is ignored: the child takes the testbed down by itself; waiting only makes sure
        // that it has ended.
        let _ = self.end();
    }
}

impl Testbed {
    /// Builds a testbed that lives in this process: it is taken down when the handle is dropped. If
    /// the process is killed instead, the next `up` on this machine takes it down.
    pub fn up(sites: &Sites, name: &str) -> Result<Testbed, Error> {
        let keeper = Keeper::start(sites, name, false)?;
        Ok(Testbed {
            plan: keeper.plan().clone(),
            hold: Hold::Keeper(keeper),
        })
    }

    /// Builds a testbed kept by a process of its own, which is `program` (with `arguments` in
    /// front) calling [`keeper::keep`].
    ///
    /// With [`Life::Tied`] that process takes the testbed down as soon as this one drops the handle
    /// or ends, by `kill -9` too; with [`Life::Detached`] when it is told to (`down`, SIGTERM).
    pub fn up_by(
        program: &Path,
        arguments: &[&OsStr],
        sites: &Sites,
        name: &str,
        life: Life,
    ) -> Result<Testbed, Error> {
        let child = keeper::start_process(program, arguments, sites, name, life)?;
        let plan = keeper::read_plan(name)?;
        Ok(Testbed {
            plan,
            hold: if life == Life::Tied {
                Hold::Child(TiedKeeper(child))
            } else {
                Hold::Nothing
            },
        })
    }

    /// A testbed that is up already.
    pub fn open(name: &str) -> Result<Testbed, Error> {
        if !keeper::is_up(name) {
            return Err(Error::NotUp(name.into()));
        }
        Ok(Testbed {
            plan: keeper::read_plan(name)?,
            hold: Hold::Nothing,
        })
    }

    /// Names of the testbeds that are up.
    pub fn list() -> Vec<String> {
        keeper::names()
            .into_iter()
            .filter(|name| keeper::is_up(name))
            .collect()
    }

    /// Hosts, sites, addresses and link shapes.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// A host by name.
    pub fn host(&self, name: &str) -> Result<&HostPlan, Error> {
        self.plan
            .host(name)
            .ok_or_else(|| Error::NoSuch(name.into()))
    }

    fn host_index(&self, name: &str) -> Result<usize, Error> {
        let mut hosts = self.plan.hosts.iter();
        hosts
            .position(|host| host.name == name)
            .ok_or_else(|| Error::NoSuch(name.into()))
    }

    fn site_index(&self, name: &str) -> Result<usize, Error> {
        let mut sites = self.plan.sites.iter();
        sites
            .position(|site| site.name == name)
            .ok_or_else(|| Error::NoSuch(name.into()))
    }

    /// Runs `action` in a thread that is on the host's network. Sockets made there stay there.
    pub fn inside<T: Send>(
        &self,
        host: &str,
        action: impl FnOnce() -> T + Send,
    ) -> Result<T, Error> {
        namespace::inside(&self.host(host)?.namespace, action)
    }

    /// Runs `action` in a thread that is on the network of a site's router.
    pub fn inside_router<T: Send>(
        &self,
        site: &str,
        action: impl FnOnce() -> T + Send,
    ) -> Result<T, Error> {
        let site = self.site_index(site)?;
        namespace::inside(&self.plan.sites[site].namespace, action)
    }

    /// Removes all connections of a site's router, and with them its NAT's mappings.
    pub fn forget_mappings(&self, site: &str) -> Result<(), Error> {
        self.inside_router(site, crate::conntrack::flush)?
            .map_err(|e| Error::Io(format!("flush the connections of {site}'s router"), e))
    }

    /// Gives a host a root file system of its own for all commands from now on: a writable overlay
    /// over `tree`, with `binds` of this machine under the same names.
    pub fn give_root(&mut self, host: &str, tree: &Path, binds: &[&Path]) -> Result<(), Error> {
        let index = self.host_index(host)?;
        let keep = Path::new(HOSTS_DIR)
            .join(&self.plan.name)
            .join(format!(".{host}"));
        let binds = binds.iter().map(|path| path.to_path_buf()).collect();
        self.plan.hosts[index].root = Some(RootPlan {
            tree: tree.to_owned(),
            binds,
            keep,
        });
        raise::save_plan(&self.plan)
    }

    /// The path of a host's files from outside: the host's `/etc` is `etc` below it.
    pub fn files(&self, host: &str) -> Result<PathBuf, Error> {
        root::view(self.host(host)?)
    }

    /// Starts a command on a host, with `P2PVM_DIR` naming the host's state directory and the
    /// host's name as host name.
    pub fn spawn(&self, host: &str, command: &mut Command) -> Result<Child, Error> {
        let host = self.host(host)?;
        let line = line(command);
        on_machine(host, || on_host(command, host).spawn())?
            .map_err(|e| Error::Io(format!("run {line} on host {}", host.name), e))
    }

    /// Replaces this process by a command running on a host; returns only if that fails.
    pub fn become_command(&self, host: &str, command: &mut Command) -> Error {
        let host = match self.host(host) {
            Ok(host) => host,
            Err(error) => return error,
        };
        let line = line(command);
        match on_machine(host, || on_host(command, host).exec()) {
            Ok(error) => Error::Io(format!("run {line} on host {}", host.name), error),
            Err(error) => error,
        }
    }

    /// Runs a command on a host to its end and returns its output and status.
    pub fn exec(&self, host: &str, argv: &[&str]) -> Result<Output, Error> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(Error::Io(
                "run an empty command".into(),
                io::ErrorKind::InvalidInput.into(),
            ));
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.spawn(host, &mut command)?;
        child
            .wait_with_output()
            .map_err(|e| Error::Io(format!("wait for {program}"), e))
    }

    /// Runs a command on a host and returns what it printed; a status other than 0 is an error.
    pub fn run(&self, host: &str, argv: &[&str]) -> Result<String, Error> {
        let output = self.exec(host, argv)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
        Err(Error::Command {
            host: host.into(),
            line: argv.join(" "),
            status: output.status,
            said,
        })
    }

    /// Cuts both directions between two sites, each named by itself or by its only host.
    pub fn cut(&self, a: &str, b: &str) -> Result<(), Error> {
        self.set_cut(a, b, true)
    }

    /// Undoes [`Testbed::cut`].
    pub fn heal(&self, a: &str, b: &str) -> Result<(), Error> {
        self.set_cut(a, b, false)
    }

    fn set_cut(&self, a: &str, b: &str, cut: bool) -> Result<(), Error> {
        let (from, to) = self.link(a, b)?;
        keeper::control(&self.plan.name, &keeper::Control::SetCut { from, to, cut })?;
        keeper::control(
            &self.plan.name,
            &keeper::Control::SetCut {
                from: to,
                to: from,
                cut,
            },
        )
        .map(drop)
    }

    /// Replaces the properties of both directions between two sites; a missing property means none.
    pub fn reshape(&self, a: &str, b: &str, properties: Properties) -> Result<(), Error> {
        let (from, to) = self.link(a, b)?;
        let shape: Shape = properties.shape().map_err(Error::Sites)?;
        keeper::control(
            &self.plan.name,
            &keeper::Control::Reshape { from, to, shape },
        )?;
        keeper::control(
            &self.plan.name,
            &keeper::Control::Reshape {
                from: to,
                to: from,
                shape,
            },
        )
        .map(drop)
    }

    fn link(&self, a: &str, b: &str) -> Result<(usize, usize), Error> {
        let not = || Error::NotALink(a.into(), b.into());
        let (from, to) = (self.end(a, not)?, self.end(b, not)?);
        if from == to {
            Err(not())
        } else {
            Ok((from, to))
        }
    }

    fn end(&self, name: &str, not: impl Fn() -> Error) -> Result<usize, Error> {
        if let Some(site) = self.plan.sites.iter().position(|site| site.name == name) {
            return Ok(site);
        }
        let host = self.host(name)?;
        if self
            .plan
            .hosts
            .iter()
            .filter(|other| other.site == host.site)
            .count()
            == 1
        {
            Ok(host.site)
        } else {
            Err(not())
        }
    }

    /// Pulls a host's cable; its programs run on.
    pub fn isolate(&self, host: &str) -> Result<(), Error> {
        raise::plug(&self.plan, host, false)
    }

    /// Undoes [`Testbed::isolate`].
    pub fn rejoin(&self, host: &str) -> Result<(), Error> {
        raise::plug(&self.plan, host, true)
    }

    /// Powers a host off: its cable first, then every process by SIGKILL. Its state directory
    /// stays. Returns how many processes there were.
    pub fn kill(&self, host: &str) -> Result<usize, Error> {
        self.isolate(host)?;
        let host = self.host(host)?;
        namespace::kill_processes(&host.namespace, &host.dir)
    }

    /// Reconnects a killed host to the network; its programs stay ended.
    pub fn revive(&self, host: &str) -> Result<(), Error> {
        self.rejoin(host)
    }

    /// Gives a site its other public addresses (there are two sets), as a provider does overnight.
    /// Its hosts get theirs if they have public ones; all NAT mappings and connections through its
    /// routers are removed.
    pub fn renumber(&mut self, site: &str) -> Result<(), Error> {
        let index = self.site_index(site)?;
        self.plan.renumber(index);
        raise::save_plan(&self.plan)?;
        raise::renumber(&self.plan, index)
    }

    /// Replaces a site's router by one with the same addresses and another kind of NAT, without
    /// mappings.
    pub fn renat(&mut self, site: &str, nat: Nat) -> Result<(), Error> {
        let index = self.site_index(site)?;
        self.plan.sites[index].nat = nat;
        raise::save_plan(&self.plan)?;
        raise::address_router(&self.plan, index)
    }

    /// Moves a host to another address at its site, or to another site, where it gets a new
    /// interface. Its programs run on.
    pub fn rehost(&mut self, host: &str, to_site: Option<&str>) -> Result<(), Error> {
        let index = self.host_index(host)?;
        let before = self.plan.hosts[index].clone();
        let site = match to_site {
            Some(name) => self.site_index(name)?,
            None => before.site,
        };
        self.plan.rehost(index, site).map_err(Error::Sites)?;
        raise::save_plan(&self.plan)?;
        raise::rehost(&self.plan, &self.plan.hosts[index], &before)
    }

    /// Closes a host's lid: stops its processes and disconnects its cable. Returns how many it
    /// stopped.
    pub fn suspend(&self, host: &str) -> Result<usize, Error> {
        let stopped = self.signal(host, Signal::SIGSTOP)?;
        self.isolate(host)?;
        Ok(stopped)
    }

    /// Undoes [`Testbed::suspend`]. Returns how many processes go on.
    pub fn wake(&self, host: &str) -> Result<usize, Error> {
        self.rejoin(host)?;
        self.signal(host, Signal::SIGCONT)
    }

    fn signal(&self, host: &str, signal: Signal) -> Result<usize, Error> {
        let processes = self.processes(host)?;
        // A process that has ended needs no signal.
        Ok(processes
            .into_iter()
            .filter(|pid| kill(Pid::from_raw(*pid), signal).is_ok())
            .count())
    }

    /// Process ids running on a host.
    pub fn processes(&self, host: &str) -> Result<Vec<i32>, Error> {
        let host = self.host(host)?;
        Ok(namespace::processes(&host.namespace, &host.dir))
    }

    /// The counters of each link, `[from][to]` by site index.
    pub fn counters(&self) -> Result<Vec<Vec<Counters>>, Error> {
        keeper::control(&self.plan.name, &keeper::Control::Report)?.ok_or(Error::Gone)
    }

    /// Kills all processes on the hosts and removes the hosts with their state directories; an
    /// error says what is left.
    pub fn down(self) -> Result<(), Error> {
        match self.hold {
            Hold::Keeper(keeper) => keeper.stop(),
            Hold::Child(mut keeper) => {
                keeper
                    .end()
                    .map_err(|e| Error::Io("wait for the testbed's keeper".into(), e))?;
                raise::raze(&self.plan.name)
            }
            Hold::Nothing => down(&self.plan.name),
        }
    }
}

/// Takes down testbed `name`, also one whose keeper was killed.
pub fn down(name: &str) -> Result<(), Error> {
    keeper::end(name)
}

/// Runs `action` in a thread that sees the host's own network, files and name.
fn on_machine<T: Send>(host: &HostPlan, action: impl FnOnce() -> T + Send) -> Result<T, Error> {
    match &host.root {
        Some(own) => root::inside(host, own, action),
        None => namespace::as_machine(&host.namespace, &host.name, action),
    }
}

fn on_host<'a>(command: &'a mut Command, host: &HostPlan) -> &'a mut Command {
    command
        .env("P2PVM_DIR", &host.dir)
        .env("P2PVM_HOST", &host.name)
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
