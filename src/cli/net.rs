//! `pillion net`: the kernel sends what applications send elsewhere through pillion, and they need not know.

mod answers;
mod listeners;
mod listing;
mod nft;
mod options;
mod programs;
mod rules;
#[cfg(test)]
mod tests;
mod values;

use super::EXIT_USAGE;
use clap::{Args, Subcommand};
use listing::InForce;
use options::Options;
use std::process::ExitCode;

/// Make the kernel send applications' TCP connections, and their DNS questions if told to, through pillion, without a change to the
/// applications.
///
/// It needs `nft`, and the right to change the network: root on a machine, NET_ADMIN in a pod's init container. All rules are in
/// one table of their own, `inet pillion` (and with --keep-source in the routing table 4140); nothing else is touched.
#[derive(Debug, Args)]
pub struct Net {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Put the rules in force, in place of those that are there.
    ///
    /// New TCP connections go to pillion's ports, but for those that are excluded. Options with users, groups, PORTS or CIDRs can be
    /// given several times, or with commas.
    Up(Box<Up>),
    /// Remove the rules. It is no error if there are none.
    Down,
    /// Tell which rules are in force.
    Show(Show),
}

#[derive(Debug, Args)]
struct Up {
    #[command(flatten)]
    options: Options,
    /// Print the rules, as `nft -f` takes them, and touch nothing. Needs no rights.
    #[arg(long)]
    print: bool,
}

#[derive(Debug, Args)]
struct Show {
    /// Print them as JSON.
    #[arg(long)]
    json: bool,
}

impl Net {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.what {
            What::Up(up) => return up.run(),
            What::Down => super::say(down()?)?,
            What::Show(Show { json }) => {
                let in_force = in_force()?;
                super::say(&if json { serde_json::to_string_pretty(&in_force)? + "\n" } else { in_force.words() })?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Up {
    fn run(self) -> anyhow::Result<ExitCode> {
        let rules = match self.options.rules() {
            Ok(rules) => rules,
            Err(mistakes) => {
                mistakes.iter().for_each(|mistake| eprintln!("{mistake}"));
                return Ok(ExitCode::from(EXIT_USAGE));
            }
        };
        if self.print {
            super::say(&rules.to_string())?;
        } else {
            nft::load(&rules.to_string())?;
            answers::keep(&rules.kept_sources)?;
            super::say(&in_force()?.words())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn down() -> anyhow::Result<&'static str> {
    let is_there = nft::table()?.is_some();
    if is_there {
        nft::load(&rules::removal())?;
    }
    let is_changed = answers::keep(&[])?;
    Ok(if is_there || is_changed { "pillion's rules are gone\n" } else { "there are no rules of pillion's\n" })
}

fn in_force() -> anyhow::Result<InForce> {
    let mut in_force = match nft::table()? {
        Some(table) => InForce::read(&table, &listeners::there)?,
        None => InForce::default(),
    };
    in_force.kept_sources = answers::kept()?;
    Ok(in_force)
}
