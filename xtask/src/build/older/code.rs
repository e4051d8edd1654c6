//! Reads the functions of an eBPF object: their instructions (`Documentation/bpf/standardization/instruction-set.rst` of Linux) and which of
//! each other they call.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use object::{
    File, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, Section, SectionIndex, SectionKind,
    SymbolKind,
};

/// Bytes of an instruction.
const BYTES: usize = 8;

/// One instruction; a load of 64 bits is two, the second of which is all zero but for its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub opcode: u8,
    /// Destination in the low four bits, source in the high ones.
    pub registers: u8,
    pub offset: i16,
    pub number: i32,
}

impl Instruction {
    /// The end of the function.
    pub const EXIT: u8 = 0x95;
    /// A jump in any case.
    pub const GO: u8 = 0x05;
    /// A call of a helper or a function.
    pub const CALL: u8 = 0x85;
    /// A register to another, 64 bits.
    pub const MOVE: u8 = 0xbf;
    /// A number to a register, 64 bits.
    pub const ADD_NUMBER: u8 = 0x07;
    /// The frame pointer.
    pub const FRAME: usize = 10;
    /// In place of the source: the call is of a function (`BPF_PSEUDO_CALL`).
    const FUNCTION: usize = 1;

    fn read(bytes: &[u8; BYTES]) -> Self {
        let [opcode, registers, low, high, number @ ..] = *bytes;
        Self { opcode, registers, offset: i16::from_le_bytes([low, high]), number: i32::from_le_bytes(number) }
    }

    pub fn dst(&self) -> usize {
        usize::from(self.registers & 0xf)
    }

    pub fn src(&self) -> usize {
        usize::from(self.registers >> 4)
    }

    /// By `BPF_CLASS`: the low three bits.
    fn class(&self) -> u8 {
        self.opcode & 7
    }

    /// A comparison that jumps or not, of 64 or 32 bits; and whatever else is of these classes.
    pub fn is_branch(&self) -> bool {
        matches!(self.class(), 5 | 6)
    }

    /// From memory to a register, by an address in a register.
    pub fn loads(&self) -> bool {
        self.class() == 1
    }

    /// From a number or a register to memory, atomically or not.
    pub fn stores(&self) -> bool {
        matches!(self.class(), 2 | 3)
    }

    /// Changes its destination: arithmetic, or a load of a number.
    pub fn computes(&self) -> bool {
        matches!(self.class(), 0 | 4 | 7)
    }

    fn calls_function(&self) -> bool {
        self.opcode == Self::CALL && self.src() == Self::FUNCTION
    }
}

/// A program or a function that programs call.
#[derive(Clone, Debug)]
pub struct Function {
    pub name: String,
    pub code: Vec<Instruction>,
    /// Names of the functions that it calls.
    pub calls: Vec<String>,
}

/// Where functions begin: by section and byte.
type Names<'o> = HashMap<(SectionIndex, u64), &'o str>;

/// Every function of an object.
pub fn read(object: &[u8]) -> Result<Vec<Function>> {
    let file = File::parse(object).context("the kernel half is no object")?;
    let mut names = Names::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        if let Some(section) = symbol.section_index() {
            names.insert((section, symbol.address()), symbol.name()?);
        }
    }
    let mut functions = Vec::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        functions.extend(functions_of(&file, &section, &names)?);
    }
    if functions.is_empty() {
        bail!("the kernel half has no functions");
    }
    Ok(functions)
}

fn functions_of(file: &File<'_>, section: &Section<'_, '_>, names: &Names<'_>) -> Result<Vec<Function>> {
    let data = section.data()?;
    let mut starts: Vec<u64> =
        names.keys().filter(|(index, _)| *index == section.index()).map(|(_, start)| *start).collect();
    starts.sort_unstable();
    let ends = starts.iter().skip(1).copied().chain([data.len() as u64]);
    let mut functions = Vec::new();
    for (start, end) in starts.iter().copied().zip(ends) {
        let bytes = data.get(start as usize..end as usize).context("a symbol outside of its section")?;
        let code: Vec<Instruction> = bytes.as_chunks().0.iter().map(Instruction::read).collect();
        let mut calls = Vec::new();
        for (index, call) in code.iter().enumerate().filter(|(_, instruction)| instruction.calls_function()) {
            let at = start + (index * BYTES) as u64;
            calls.push(called(file, section, names, at, call)?.to_owned());
        }
        let name = names.get(&(section.index(), start)).context("a function without a name")?;
        functions.push(Function { name: (*name).to_owned(), code, calls });
    }
    Ok(functions)
}

/// The function that the instruction at this byte calls: the linker leaves a relocation, or the distance where it knows it already.
fn called<'o>(
    file: &File<'_>,
    section: &Section<'_, '_>,
    names: &Names<'o>,
    at: u64,
    call: &Instruction,
) -> Result<&'o str> {
    let behind = |from: u64| from.wrapping_add_signed((i64::from(call.number) + 1) * BYTES as i64);
    let relocated = section.relocations().find(|(offset, _)| *offset == at);
    let target = match relocated.map(|(_, relocation)| relocation.target()) {
        Some(RelocationTarget::Symbol(index)) => {
            let symbol = file.symbol_by_index(index)?;
            let within = symbol.section_index().context("a call of what is not in the object")?;
            // Of the section as a whole the instruction says which instruction.
            let start = if symbol.kind() == SymbolKind::Section { behind(0) } else { symbol.address() };
            (within, start)
        }
        _ => (section.index(), behind(at)),
    };
    names.get(&target).copied().with_context(|| format!("a call of no function, at byte {at} of {:?}", section.name()))
}
