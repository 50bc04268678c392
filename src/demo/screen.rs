//! Where the demo shows itself: a line that renews itself on a terminal, plain lines anywhere else.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

pub struct Screen<W = io::Stdout> {
    out: W,
    terminal: bool,
    /// The line at the bottom of the terminal, which has no end yet.
    status: String,
}

/// Clears the line that the cursor is in.
const CLEAR: &str = "\r\x1b[K";
/// Around the status: where the terminal is narrower than it, the rest is cut off. A line that wrapped could not be
/// written over.
const NO_WRAP: (&str, &str) = ("\x1b[?7l", "\x1b[?7h");

impl Screen {
    pub fn new() -> Self {
        let out = io::stdout();
        Self { terminal: out.is_terminal(), out, status: String::new() }
    }
}

impl<W: Write> Screen<W> {
    /// How often the status is to be shown.
    pub fn period(&self) -> Duration {
        Duration::from_secs(if self.terminal { 1 } else { 5 })
    }

    /// Lines that stay.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        if self.status.is_empty() {
            writeln!(self.out, "{text}")?;
        } else {
            writeln!(self.out, "{CLEAR}{text}")?;
            self.write_status()?;
        }
        self.out.flush()
    }

    /// The line that the next one replaces.
    pub fn status(&mut self, line: String) -> io::Result<()> {
        if !self.terminal {
            return self.say(&line);
        }
        self.status = line;
        write!(self.out, "{CLEAR}")?;
        self.write_status()?;
        self.out.flush()
    }

    fn write_status(&mut self) -> io::Result<()> {
        write!(self.out, "{}{}{}", NO_WRAP.0, self.status, NO_WRAP.1)
    }

    /// The last status stays where it is, with what comes after it below.
    pub fn end_status(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.status).is_empty() {
            true => Ok(()),
            false => writeln!(self.out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(terminal: bool) -> String {
        let mut screen = Screen { out: Vec::new(), terminal, status: String::new() };
        screen.say("hello").unwrap();
        screen.status("one".into()).unwrap();
        screen.say("event").unwrap();
        screen.status("two".into()).unwrap();
        screen.end_status().unwrap();
        screen.say("bye").unwrap();
        String::from_utf8(screen.out).unwrap()
    }

    #[test]
    fn a_terminal_has_one_status_line_and_a_file_has_all() {
        assert_eq!(shown(false), "hello\none\nevent\ntwo\nbye\n");
        let terminal = shown(true).replace("\x1b[?7l", "<").replace("\x1b[?7h", ">").replace("\r\x1b[K", "|");
        assert_eq!(terminal, "hello\n|<one>|event\n<one>|<two>\nbye\n");
    }
}
