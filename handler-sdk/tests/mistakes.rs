//! Situation: common mistakes of an author. Property: the compiler's message names the remedy.

#[test]
fn each_mistake_gets_a_helpful_message() {
    trybuild::TestCases::new().compile_fail("tests/mistakes/*.rs");
}
