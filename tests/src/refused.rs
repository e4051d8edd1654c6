//! An agent some of whose programs this kernel refuses, as a kernel does that lacks something: the real agent, in whose kernel half these
//! programs begin with the call of a helper that no kernel gives to programs of their kind, or call it wherever they called another.

use std::{fs, path::PathBuf, process::Command};

use object::{File, Object, ObjectSection, ObjectSymbol, SectionKind};
use tempfile::TempDir;

use crate::agent;

/// Number of `bpf_override_return`, which is for probes of kernel functions alone.
const HELPER: u32 = 58;
/// What the verifier calls it.
pub const HELPER_NAME: &str = "bpf_override_return";
/// Number of `bpf_probe_read_kernel`, which a kernel withholds that is locked down for confidentiality.
const READING: u32 = 113;
/// Length of an instruction.
const INSTRUCTION_BYTES: usize = 8;
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
        Self::at(|inner| programs.iter().map(|program| begin_of(inner, program)).collect())
    }

    /// Of each program that reads the kernel's memory, wherever the verifier comes to that.
    pub fn locked_down() -> Self {
        Self::at(calls_of_reading)
    }

    fn at(places: impl Fn(&File<'_>) -> Vec<usize>) -> Self {
        let mut binary = fs::read(agent::binary()).expect("the agent's binary");
        for at in within_copies(&binary, places) {
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

/// Where in the agent's file places of the kernel half are: in each copy of it, since the compiler may make several of a constant.
fn within_copies(binary: &[u8], places: impl Fn(&File<'_>) -> Vec<usize>) -> Vec<usize> {
    let outer = File::parse(binary).expect("an ELF file");
    let (start, length) = outer.section_by_name(".rodata").and_then(|section| section.file_range()).expect("constants");
    let constants = &binary[start as usize..(start + length) as usize];
    let is_kernel_half =
        |at: &usize| constants[*at..].starts_with(b"\x7fELF") && constants[at + MACHINE.1..].starts_with(&MACHINE.0);
    let copies: Vec<usize> = (0..constants.len()).step_by(ALIGNED).filter(is_kernel_half).collect();
    assert!(!copies.is_empty(), "an agent without its kernel half");
    let moved = |at: &usize| {
        let inner = File::parse(&constants[*at..]).expect("an object");
        places(&inner).into_iter().map(|place| start as usize + at + place).collect::<Vec<_>>()
    };
    copies.iter().flat_map(moved).collect()
}

/// Where in an object a program begins.
fn begin_of(inner: &File<'_>, program: &str) -> usize {
    let symbol = inner.symbols().find(|symbol| symbol.name() == Ok(program));
    let symbol = symbol.unwrap_or_else(|| panic!("the kernel half has no program {program}"));
    let section = symbol.section_index().and_then(|index| inner.section_by_index(index).ok());
    let (within, _) = section.and_then(|section| section.file_range()).expect("a section with instructions");
    (within + symbol.address()) as usize
}

/// Where in an object the kernel's memory is read.
fn calls_of_reading(inner: &File<'_>) -> Vec<usize> {
    let code = inner.sections().filter(|section| section.kind() == SectionKind::Text);
    let calls = code.flat_map(|section| {
        let (within, _) = section.file_range().expect("a section with instructions");
        let data = section.data().expect("instructions");
        let call = [[CALL, 0, 0, 0], READING.to_le_bytes()].concat();
        let is_call = move |(_, instruction): &(usize, &[u8])| *instruction == call;
        let calls = data.chunks_exact(INSTRUCTION_BYTES).enumerate().filter(is_call);
        calls.map(|(index, _)| within as usize + index * INSTRUCTION_BYTES).collect::<Vec<_>>()
    });
    let calls: Vec<usize> = calls.collect();
    assert!(!calls.is_empty(), "a kernel half that reads nothing of the kernel's");
    calls
}
