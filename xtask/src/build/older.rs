//! What older kernels refuse in the kernel half and newer ones take, found in the object itself: whoever develops on a new kernel would
//! otherwise learn of it from somebody else's log. Three things, each of which has happened or nearly so:
//!
//! - **A loop that is entered by falling into it.** Before Linux 6.7 (its commit 10e14e9652bf) `check_cfg` of the verifier walks the
//!   instructions depth first, the next one before the one jumped to, and takes an edge to an instruction that it is still below for a loop
//!   only if a jump makes it; an instruction that just goes on to the next one makes a "back-edge", which is refused.
//! - **A stack that is too deep over calls.** Before 6.8 `check_max_stack_depth` rounds each frame up to 32 bytes, at least one such piece,
//!   and refuses 512 bytes along a chain of calls; later ones round up to 16.
//! - **An instruction that came after 5.15.**
//!
//! What depends on values only a kernel can tell: bounds, the million of steps, and the stack of functions that a helper calls (`bpf_loop`),
//! which count as called, while what the loop would take in their place does not: `cargo xtask test-kernel --kernel 6.1 --test gates`.

mod code;

use std::collections::HashMap;

use anyhow::{Result, bail};

use self::code::{Function, Instruction};

/// `MAX_BPF_STACK` of the kernel.
const STACK_BYTES_MAX: u32 = 512;
/// To which verifiers before 6.8 round up a frame.
const FRAME_BYTES: u32 = 32;
/// `MAX_CALL_FRAMES` of the kernel.
const FRAMES_MAX: usize = 8;

/// Fails on an object that a kernel since 5.15 would refuse for one of these things, and says where.
pub fn check(object: &[u8]) -> Result<()> {
    let functions = code::read(object)?;
    let mut findings: Vec<String> = functions.iter().flat_map(findings_of).collect();
    findings.extend(deep_stacks(&functions));
    if !findings.is_empty() {
        bail!("kernels that Sockway is for refuse this object:\n  {}", findings.join("\n  "));
    }
    Ok(())
}

fn findings_of(function: &Function) -> Vec<String> {
    let back_edge = back_edge(&function.code).map(|(from, to)| {
        format!(
            "`{}`: instruction {from} falls into the head of a loop, {to}: before 6.7 that is a back-edge; write the loop so that it is entered by a jump",
            function.name
        )
    });
    let later = function.code.iter().enumerate().filter_map(|(index, instruction)| {
        let what = later(instruction)?;
        Some(format!("`{}`: instruction {index} is {what}", function.name))
    });
    back_edge.into_iter().chain(later).collect()
}

/// Where an instruction can lead, in the order in which the verifier walks, and whether it jumps there.
fn edges(at: usize, instruction: &Instruction) -> Vec<(usize, bool)> {
    let next = at + 1;
    let target = next.saturating_add_signed(instruction.offset.into());
    match instruction.opcode {
        Instruction::EXIT => Vec::new(),
        Instruction::GO => vec![(target, true)],
        Instruction::CALL => vec![(next, false)],
        _ if instruction.is_branch() => vec![(next, true), (target, true)],
        _ => vec![(next, false)],
    }
}

/// Walks as `check_cfg` did: the first edge that is no jump and leads to an instruction that the walk has not left yet.
fn back_edge(code: &[Instruction]) -> Option<(usize, usize)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Not,
        Below,
        Left,
    }
    let mut seen = vec![Seen::Not; code.len()];
    // An instruction with the edges that are still to be walked, the next one last.
    let walk = |at: usize| (at, edges(at, &code[at]).into_iter().rev().collect::<Vec<_>>());
    let mut path = Vec::new();
    if !code.is_empty() {
        seen[0] = Seen::Below;
        path.push(walk(0));
    }
    while let Some((at, left)) = path.last_mut() {
        let at = *at;
        let Some((to, jumps)) = left.pop() else {
            seen[at] = Seen::Left;
            path.pop();
            continue;
        };
        match seen.get(to) {
            Some(Seen::Not) => {
                seen[to] = Seen::Below;
                path.push(walk(to));
            }
            Some(Seen::Below) if !jumps => return Some((at, to)),
            _ => {}
        }
    }
    None
}

/// Chains of calls whose frames are too much together, each by its first function.
fn deep_stacks(functions: &[Function]) -> Vec<String> {
    let by_name: HashMap<&str, &Function> =
        functions.iter().map(|function| (function.name.as_str(), function)).collect();
    let deepest = functions.iter().map(|function| deepest(function, &by_name, FRAMES_MAX));
    let told = deepest.filter(|chain| chain.bytes > STACK_BYTES_MAX || chain.names.len() > FRAMES_MAX);
    told.map(|chain| {
        let Chain { bytes, names } = chain;
        let names = names.join(" → ");
        format!(
            "`{names}`: {bytes} bytes of stack in frames rounded up to {FRAME_BYTES}, at most {STACK_BYTES_MAX} before 6.8"
        )
    })
    .collect()
}

/// Functions that call each other, and the stack that they take together.
struct Chain<'f> {
    bytes: u32,
    names: Vec<&'f str>,
}

fn deepest<'f>(function: &'f Function, by_name: &HashMap<&str, &'f Function>, frames_left: usize) -> Chain<'f> {
    let called = function.calls.iter().filter_map(|name| by_name.get(name.as_str()));
    // One frame more than there may be is enough to tell; recursion ends there, too.
    let below = called.filter(|_| frames_left > 0).map(|called| deepest(called, by_name, frames_left - 1));
    let mut chain =
        below.max_by_key(|chain| (chain.bytes, chain.names.len())).unwrap_or(Chain { bytes: 0, names: Vec::new() });
    chain.bytes += frame_bytes(&function.code).max(1).next_multiple_of(FRAME_BYTES);
    chain.names.insert(0, &function.name);
    chain
}

/// How far below the frame pointer (r10) the code reaches, itself or by an address that it gives away. Registers are followed in the order in
/// which the code stands, not in which it runs: a register that is taken for an address when it is none any more makes the answer too large
/// at worst.
fn frame_bytes(code: &[Instruction]) -> u32 {
    let mut below: [Option<i32>; 16] = [None; 16];
    below[Instruction::FRAME] = Some(0);
    let mut lowest = 0;
    for instruction in code {
        let (dst, src) = (instruction.dst(), instruction.src());
        let reached = |base: Option<i32>| base.map_or(0, |base| base + i32::from(instruction.offset));
        match instruction.opcode {
            Instruction::MOVE => below[dst] = below[src],
            Instruction::ADD_NUMBER => {
                below[dst] = below[dst].map(|base| base + instruction.number);
                lowest = lowest.min(below[dst].unwrap_or(0));
            }
            Instruction::CALL => below[..=5].fill(None),
            _ if instruction.stores() => lowest = lowest.min(reached(below[dst])),
            _ if instruction.loads() => {
                lowest = lowest.min(reached(below[src]));
                below[dst] = None;
            }
            _ if instruction.computes() => below[dst] = None,
            _ => {}
        }
    }
    lowest.unsigned_abs()
}

/// What an instruction is that Linux 5.15 does not have.
fn later(instruction: &Instruction) -> Option<&'static str> {
    // Atomic operations of 5.12: addition, or, and, exclusive or, each with a result or not; exchange; compare and exchange.
    const ATOMIC: [i32; 10] = [0x00, 0x01, 0x40, 0x41, 0x50, 0x51, 0xa0, 0xa1, 0xe1, 0xf1];
    let operation = instruction.opcode & 0xf0;
    match instruction.opcode {
        0x06 => Some("a long jump (Linux 6.6)"),
        0xe5 => Some("a jump that ends loops (Linux 6.9)"),
        0xd7 => Some("an unconditional byte swap (Linux 6.6)"),
        0xc3 | 0xdb if !ATOMIC.contains(&instruction.number) => Some("an atomic operation later than Linux 5.12"),
        _ if instruction.loads() && instruction.opcode & 0xe0 == 0x80 => Some("a load with its sign (Linux 6.6)"),
        _ if instruction.computes() && instruction.offset != 0 && operation == 0xb0 => {
            Some("a move with its sign (Linux 6.6)")
        }
        _ if instruction.computes() && instruction.offset != 0 && matches!(operation, 0x30 | 0x90) => {
            Some("a division with its sign (Linux 6.6)")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(opcode: u8, registers: u8, offset: i16, number: i32) -> Instruction {
        Instruction { opcode, registers, offset, number }
    }

    /// `r0 = 0`, `r0 += 1`, `if r0 != 7 goto offset`, `goto offset`, the end.
    fn zero() -> Instruction {
        instruction(0xb7, 0, 0, 0)
    }
    fn add() -> Instruction {
        instruction(0x07, 0, 0, 1)
    }
    fn unless(offset: i16) -> Instruction {
        instruction(0x55, 0, offset, 7)
    }
    fn go(offset: i16) -> Instruction {
        instruction(0x05, 0, offset, 0)
    }
    fn exit() -> Instruction {
        instruction(0x95, 0, 0, 0)
    }

    fn function(name: &str, frame: i16, calls: &[&str]) -> Function {
        let code = vec![instruction(0x7b, 0x0a, -frame, 0), exit()];
        Function { name: name.into(), code, calls: calls.iter().map(|name| (*name).into()).collect() }
    }

    #[test]
    fn a_loop_whose_end_jumps_back_is_taken() {
        assert_eq!(back_edge(&[zero(), add(), unless(-2), exit()]), None);
        assert_eq!(back_edge(&[zero(), add(), unless(1), exit(), go(-4)]), None);
    }

    #[test]
    fn a_loop_that_is_fallen_into_from_within_is_a_back_edge() {
        // 0: goto 3; 1: r0 = 0; 2: r0 += 1, falls to 3; 3: if r0 != 7 goto 1; 4: exit.
        let fallen_into = [go(2), zero(), add(), unless(-3), exit()];
        assert_eq!(back_edge(&fallen_into), Some((2, 3)));
        // The same with a jump in place of the fall.
        assert_eq!(back_edge(&[go(3), zero(), add(), go(0), unless(-4), exit()]), None);
    }

    #[test]
    fn frames_are_rounded_up_and_added_along_the_calls() {
        let fits = [function("a", 257, &["b"]), function("b", 200, &[])];
        assert_eq!(deep_stacks(&fits), [""; 0]);
        let deep = [function("a", 257, &["b", "c"]), function("b", 8, &[]), function("c", 225, &[])];
        let [told] = &deep_stacks(&deep)[..] else { panic!("one chain is too deep") };
        assert!(told.starts_with("`a → c`: 544 bytes"), "{told}");
        assert!(!deep_stacks(&[function("again", 0, &["again"])]).is_empty(), "recursion");
    }

    #[test]
    fn an_address_that_is_given_away_counts_as_the_frame_that_it_is_in() {
        // r2 = r10; r2 += -200; call.
        let code = [instruction(0xbf, 0xa2, 0, 0), instruction(0x07, 2, 0, -200), instruction(0x85, 0, 0, 1), exit()];
        assert_eq!(frame_bytes(&code), 200);
        // r2 is not the frame any more: r2 = 0; r2 += -300.
        assert_eq!(frame_bytes(&[code[0], instruction(0xb7, 2, 0, 0), instruction(0x07, 2, 0, -300)]), 0);
    }

    #[test]
    fn instructions_that_came_later_are_named() {
        assert!(later(&instruction(0xd7, 0, 0, 64)).is_some_and(|what| what.contains("byte swap")));
        assert!(later(&instruction(0xbf, 0x12, 8, 0)).is_some_and(|what| what.contains("move")));
        assert!(later(&instruction(0xdb, 0x12, 0, 0x100)).is_some(), "load with acquire");
        for known in [zero(), add(), unless(3), go(3), exit(), instruction(0xdb, 0x12, 0, 0x01)] {
            assert_eq!(later(&known), None, "{known:?}");
        }
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert!(check(b"\x7fELF").is_err());
    }
}
