//! An agent some of whose programs this kernel refuses, as a kernel does that lacks something: the real agent, in whose kernel half these
//! programs begin with the call of a helper that no kernel gives to programs of their kind.

use std::{fs, path::PathBuf, process::Command};

use object::{File, Object, ObjectSection, ObjectSymbol};
use tempfile::TempDir;

use crate::agent;

/// Number of `bpf_override_return`, which is for probes of kernel functions alone.
const HELPER: u32 = 58;
/// What the verifier calls it.
pub const HELPER_NAME: &str = "bpf_override_return";
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_LD | BPF_IMM | BPF_DW`: an instruction of twice the length, into which addresses of maps are put later.
const WIDE: u8 = 0x18;
/// `EM_BPF`, where it stands in the header of an object, and how the kernel half is aligned within the agent.
const MACHINE: ([u8; 2], usize) = ([247, 0], 18);
const ALIGNED: usize = 8;

/// The agent's binary with programs that no kernel takes. It is gone when this is dropped.
#[derive(Debug)]
pub struct Refused {
    directory: TempDir,
}

impl Refused {
    /// Of these programs, by their names in the kernel half.
    pub fn new(programs: &[&str]) -> Self {
        let mut binary = fs::read(agent::binary()).expect("the agent's binary");
        for at in begins_of(&binary, programs) {
            assert_ne!(binary[at], WIDE, "a program that begins with an address");
            binary[at..at + 4].copy_from_slice(&[CALL, 0, 0, 0]);
            binary[at + 4..at + 8].copy_from_slice(&HELPER.to_le_bytes());
        }
        let refused = Self { directory: TempDir::new().expect("a temporary directory") };
        let written = refused.directory.path().join("written");
        fs::write(&written, binary).expect("room for another agent");
        // A file that this process has written cannot be run (ETXTBSY) while a child of another test, just forked, still holds it open.
        let installed = Command::new("install").args(["-m", "755"]).args([&written, &refused.path()]).status();
        assert!(installed.expect("install(1)").success(), "a copy that nobody holds open");
        refused
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("sockway")
    }
}

/// Where in the agent's file programs of the kernel half begin: in each copy of it, since the compiler may make several of a constant.
fn begins_of(binary: &[u8], programs: &[&str]) -> Vec<usize> {
    let outer = File::parse(binary).expect("an ELF file");
    let (start, length) = outer.section_by_name(".rodata").and_then(|section| section.file_range()).expect("constants");
    let constants = &binary[start as usize..(start + length) as usize];
    let is_kernel_half =
        |at: &usize| constants[*at..].starts_with(b"\x7fELF") && constants[at + MACHINE.1..].starts_with(&MACHINE.0);
    let copies: Vec<usize> = (0..constants.len()).step_by(ALIGNED).filter(is_kernel_half).collect();
    assert!(!copies.is_empty(), "an agent without its kernel half");
    let begin = |at: &usize| {
        let inner = File::parse(&constants[*at..]).expect("an object");
        programs.iter().map(|program| start as usize + at + begin_of(&inner, program)).collect::<Vec<_>>()
    };
    copies.iter().flat_map(begin).collect()
}

/// Where in an object a program begins.
fn begin_of(inner: &File<'_>, program: &str) -> usize {
    let symbol = inner.symbols().find(|symbol| symbol.name() == Ok(program));
    let symbol = symbol.unwrap_or_else(|| panic!("the kernel half has no program {program}"));
    let section = symbol.section_index().and_then(|index| inner.section_by_index(index).ok());
    let (within, _) = section.and_then(|section| section.file_range()).expect("a section with instructions");
    (within + symbol.address()) as usize
}
