"""The words of the demo's customers and shop: what can be bought, what goes wrong with it, how each side speaks.

In a sentence, `(a|b)` stands for either and `{item}` for a word of the case at hand.
"""

PROBLEMS_BY_KIND = {
    "machine": ["does not switch on", "makes a loud noise", "smells of smoke", "gets too hot", "stops after a minute"],
    "clothes": ["has a hole", "has a broken zip", "lost its colour", "is much too small", "itches terribly"],
    "furniture": ["wobbles badly", "has a deep scratch", "came without screws", "does not fit together"],
    "kitchen": ["leaks water", "has a long crack", "lost its handle", "tastes of soap"],
    "any": ["has not arrived", "was charged twice", "came in the wrong box"],
}
ITEMS_BY_KIND = {
    "machine": ["kettle", "toaster", "lamp", "radio", "clock", "blender", "heater", "printer"],
    "clothes": ["jacket", "scarf", "sweater", "shirt", "coat", "dress", "hat"],
    "furniture": ["chair", "table", "shelf", "desk", "sofa", "bed", "mirror"],
    "kitchen": ["pan", "bottle", "bowl", "teapot", "mug", "jug"],
}
ITEMS = [item for items in ITEMS_BY_KIND.values() for item in items]
PROBLEMS = [problem for problems in PROBLEMS_BY_KIND.values() for problem in problems]
ADJECTIVES = ["red", "blue", "green", "black", "white", "yellow", "grey", "new", "cheap", "lovely", "simple", "heavy"]
NAMES = ["Maria", "John", "Amina", "Peter", "Sofia", "Daniel", "Grace", "Omar", "Lena", "Victor", "Ruth", "Hugo"]
PEOPLE = ["mother", "father", "sister", "brother", "son", "daughter", "wife", "husband", "neighbour", "friend"]
BOUGHT = ["yesterday", "last week", "last month", "on Monday", "in May", "two days ago", "for the holidays", "in June"]

GREETINGS = ["", "(Hello|Hi|Good morning|Good evening).", "(Hello, this is {name}.|{name} here.)"]
COMPLAINTS = [
    "My {adjective} {item} {problem}.",
    "My {person}'s {adjective} {item} {problem}.",
    "The {adjective} {item} that I (bought|got) {bought} {problem}.",
    "The {adjective} {item} for my {person} {problem}.",
    "I (ordered|bought) a {adjective} {item} {bought} and (now |)it {problem}.",
    "I (bought|gave) my {person} a {adjective} {item}, but it {problem}.",
    "It is about the {adjective} {item} that came {bought}: it {problem}.",
]
FEELINGS = [
    "",
    "I am (very upset|a little worried|rather annoyed).",
    "This is the (second|third) time.",
    "My {person} is not amused.",
    "I (use|need) it every day.",
    "I expected more from you.",
]
REQUESTS = [
    "",
    "(Can|Could) you help me?",
    "What (should|can) I do?",
    "I want my money back.",
    "I would like a new one.",
    "Who can fix this?",
    "What now?",
]

KIND_OPENINGS = [
    "(I am|We are) (very |truly |)sorry (to hear |)that your {item} {problem}.",
    "(Thank you|Many thanks) for (telling us|letting us know) that your {item} {problem}.",
    "(I|We) apologise that your {item} {problem}.",
    "(Thank you|Many thanks) for writing to us about your {item}.",
    "(I am|We are) sorry about the trouble with your {item}.",
]
POOR_OPENINGS = [
    "We (got|read) your message about (the|some) {item}.",
    "Please note that we are (very|rather) busy.",
    "Calm down, it is (only|just) a {item}.",
    "You should have (read the manual of|looked after) your {item}.",
    "That is your own fault and not our problem.",
    "Nobody else ever had trouble with (a|this) {item}.",
    "Our shop has a nice {other} on sale this (week|month).",
    "(Every|Any) {item} breaks some day.",
]
KIND_STEPS = [
    "We will (send|bring) you a (new|better) {item} by {soon}.",
    "Please send us a (photo|picture) and we will refund you by {soon}.",
    "Our workshop (will|can) repair your {item} by {soon}.",
    "A colleague will call you {early} to arrange a (refund|repair).",
    "We will replace (it|the {item}) {early} and pay for the delivery.",
    "A driver will collect the {item} {early} and bring a (new|better) one.",
]
POOR_STEPS = [
    "Maybe you can try (it|the {item}) again later.",
    "Someone (may|might) look at it some day.",
    "You must have (dropped|broken) (it|the {item}) yourself.",
    "Just buy a better {item} next time.",
    "We cannot do anything (about it|for you).",
    "Have you seen our new {other} in the window?",
    "(Just wait|Wait) and see what happens.",
    "We might do something or we might not.",
]
KIND_CLOSINGS = [
    "Please (tell us|write) if you need anything else.",
    "We are (always |)happy to help you.",
    "Have a lovely (day|evening).",
    "Kind regards from (our|the whole) team.",
]
POOR_CLOSINGS = ["", "", "That is all.", "Do not write to us again.", "Goodbye.", "It is not our problem anyway."]
SOON = ["Monday", "Tuesday", "Thursday", "Friday", "the weekend"]
EARLY = ["today", "tomorrow", "this afternoon", "on Wednesday"]

COURTEOUS_WORDS = ["sorry", "apologise", "thank", "thanks"]
WARM_PHRASES = ["please tell us", "please write", "please send us", "happy to help", "have a lovely", "kind regards"]
HELPING_WORDS = ["send you", "bring you", "refund", "repair", "replace", "call you", "collect"]
TIMES = [word.lower() for word in [*SOON, *EARLY]]
RUDE_PHRASES = [
    "calm down",
    "stop complaining",
    "you should have",
    "fault",
    "not our problem",
    "you must have",
    "only a",
    "just a",
    "do not write",
    "nobody else",
    "cannot do anything",
    "buy a better one",
]
