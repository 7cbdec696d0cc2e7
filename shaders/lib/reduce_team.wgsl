// Reductions over teams of TEAM neighbouring lanes, a power of two, through workgroup memory; LANES is a multiple of TEAM.
// Up to 16 lanes, each lane adds up its whole team; beyond, a few add up sixteen lanes each first. That is one or two
// barriers in place of one for each halving. Every invocation must call them, and gets its team's result. `turn` is 0 or 1,
// and another one than that of the reduction before: lanes may still be reading what that one wrote.
const GROUP = min(TEAM, 16u);
const GROUPS = TEAM / GROUP;

var<workgroup> wg_team: array<f32, 2u * LANES>;
var<workgroup> wg_groups: array<f32, 2u * (LANES / GROUP)>;

fn team_max(lane: u32, value: f32, turn: u32) -> f32 {
    wg_team[turn * LANES + lane] = value;
    workgroupBarrier();
    let mine = turn * LANES + lane / TEAM * TEAM;
    let member = lane % TEAM;
    let first = mine + member % GROUPS * GROUP;
    var result = wg_team[first];
    if GROUPS == 1u || member < GROUPS {
        for (var i = 1u; i < GROUP; i++) {
            result = max(result, wg_team[first + i]);
        }
    }
    if GROUPS > 1u {
        let groups = (turn * LANES + lane / TEAM * TEAM) / GROUP;
        if member < GROUPS {
            wg_groups[groups + member] = result;
        }
        workgroupBarrier();
        result = wg_groups[groups];
        for (var i = 1u; i < GROUPS; i++) {
            result = max(result, wg_groups[groups + i]);
        }
    }
    return result;
}

fn team_sum(lane: u32, value: f32, turn: u32) -> f32 {
    wg_team[turn * LANES + lane] = value;
    workgroupBarrier();
    let mine = turn * LANES + lane / TEAM * TEAM;
    let member = lane % TEAM;
    let first = mine + member % GROUPS * GROUP;
    var result = 0.0;
    if GROUPS == 1u || member < GROUPS {
        for (var i = 0u; i < GROUP; i++) {
            result += wg_team[first + i];
        }
    }
    if GROUPS > 1u {
        let groups = mine / GROUP;
        if member < GROUPS {
            wg_groups[groups + member] = result;
        }
        workgroupBarrier();
        result = 0.0;
        for (var i = 0u; i < GROUPS; i++) {
            result += wg_groups[groups + i];
        }
    }
    return result;
}
