"""The plots of the demo stories: lists of beats, each beat a choice of sentences.

Slots: N hero, h the hero's kind, they/them/their (hero), M helper, k the helper's kind,
mthey/mthem/mtheir (helper), O thing, aO 'a red lantern', P place phrase, L home phrase,
F food, t trait. A capital first letter (They, Their) capitalises. `endings` close any plot.
"""

OPENINGS = [
    "Once upon a time, there was a {t} {h} named {N}.",
    "Once upon a time, a {t} {h} named {N} lived {L}.",
    "Long ago, a {t} {h} named {N} lived {L}.",
    "There once was a {t} {h} named {N}.",
    "{N} was a {t} {h} who lived {L}.",
]
TIMES = [
    "One morning",
    "One day",
    "One windy evening",
    "One sunny day",
    "One rainy afternoon",
    "One cold night",
    "Late one night",
    "Early one morning",
    "One summer day",
    "One winter day",
]
ENDINGS = [
    "From that day on, {N} and {M} were the best of friends.",
    "That night, {N} fell asleep with a smile.",
    "And they were friends forever after.",
    "{N} and {M} laughed all the way home.",
    "And whenever the wind blew, {N} thought of that day and smiled.",
    "It was the best day of the whole year.",
    "And the {O} stayed with {N} for many happy years.",
    "Then the stars came out, and everyone went home happy.",
    "{N} had learned that a good friend is the best treasure of all.",
]
THE_END = " The end."

FOUND = [
    ["{T}, {they} found {aO} {P}.", "{T}, {N} found {aO} {P}."],
    [
        "Nobody knew where it had come from.",
        '"Who could have lost this?" {they} wondered.',
        "It was the finest {O} that {they} had ever seen.",
    ],
    [
        "Just then, {ak} named {M} came along, looking very sad.",
        "Then {N} heard someone crying. It was {M} the {k}.",
    ],
    [
        '"I have lost my {O}," said {M}.',
        '"That is my {O}," said {M}. "I looked for it everywhere."',
    ],
    [
        "{N} gave it back at once.",
        "{They} wanted to keep it, but {they} gave it back with a smile.",
    ],
    [
        "{M} was so happy that {mthey} shared {mtheir} {F} with {N}.",
        '"Thank you!" said {M}, and the two of them ate {F} together.',
    ],
]
LOST = [
    ["More than anything, {they} loved {their} {O}.", "{N} had {aO} and took it everywhere."],
    ["{T}, the {O} was gone.", "{T}, {they} could not find it anywhere."],
    [
        "{They} looked high and low, but it was nowhere to be seen.",
        "{They} looked under the bed and behind the door, but it was not there.",
    ],
    [
        '"Do not worry," said {M} the {k}. "I will help you."',
        "{Ak} named {M} saw {them} and offered to help.",
    ],
    [
        "Together they searched until the sun went down.",
        "They walked a long way and asked everyone.",
    ],
    ["At last, they found the {O} {P}.", "At last, {M} saw it lying {P}."],
    ["{N} hugged {M} and danced with joy.", '"You are a true friend," said {N}.'],
]
GIFT = [
    ["{T}, it was the birthday of {M} the {k}.", "{Their} best friend was {ak} named {M}."],
    ["{N} wanted to give {mthem} something special.", "{They} wished to find the perfect gift."],
    ["So {they} went out and looked {P}.", "{They} searched all day {P}."],
    [
        "There {they} found {aO}, and {they} knew it was just right.",
        "And there it was: {aO}, waiting just for {them}.",
    ],
    [
        "{They} wrapped it in paper and tied it with a blue bow.",
        "{They} carried it home very carefully.",
    ],
    ['"This is the best gift of all," said {M}.', "When {M} saw the {O}, {mthey} jumped for joy."],
    ["Then they ate {F} until they were full.", "Then everyone sang and ate {F}."],
]
STORM = [
    ["{T}, a great storm came, and the sky turned dark.", "{T}, {they} got lost {P}."],
    ["{N} was afraid, but {they} had {aO} with {them}.", "All {they} had was {aO}."],
    ["Then {they} heard a small voice calling for help.", "Far away, somebody was calling."],
    ["It was {M}, {ak} who could not find the way home.", "{Ak} named {M} was stuck in the mud."],
    ['"Hold on to my {O}!" said {N}.', '"Do not be afraid," said {N}. "My {O} will help us."'],
    [
        "Step by step, they walked through the wind and the rain.",
        "Slowly, they found the right path together.",
    ],
    [
        "At home, they warmed themselves by the fire and ate {F}.",
        "Soon they were safe and warm, with {F} for supper.",
    ],
]
WISH = [
    ["{They} had only one wish: {aO}.", "Every night, {they} dreamed of {aO}."],
    [
        "{T}, {they} saw a falling star and made a wish.",
        "{T}, {they} whispered the wish to the moon.",
    ],
    [
        "The next morning, there was nothing at the door, and {N} was sad.",
        "{They} waited for seven days, but nothing happened.",
    ],
    ["Luckily, {M} the {k} had heard everything.", "Luckily, {ak} named {M} had been listening."],
    [
        "{M} worked all week and made {aO} out of bits and pieces.",
        "{M} went far away and came back with {aO}.",
    ],
    ['"Is it really for me?" asked {N}.', "{N} could hardly believe {their} eyes."],
    ["They took the {O} and went to play {P}.", "All day long they played with it {P}."],
]
RACE = [
    ["{T}, there was a big race, and the prize was {aO}.", "{T}, everybody came to race for {aO}."],
    ["{N} ran as fast as {they} could.", "{N} was ahead of all the others."],
    [
        "But {P}, {they} saw that {M} the {k} had fallen down.",
        "Then {they} saw {ak} named {M} sitting {P} with a sore foot.",
    ],
    [
        "{N} stopped to help, and the others ran past.",
        "{They} stopped at once and helped {mthem} up.",
    ],
    ["They came in last, but nobody laughed.", "They reached the end together, the last of all."],
    [
        "The judge gave the {O} to {N}, for the kindest heart.",
        '"A kind heart wins today," said the judge, and gave {them} the {O}.',
    ],
    ["They shared the prize and a plate of {F}.", "Everyone cheered, and they all ate {F}."],
]
MAP = [
    ["{T}, {they} found an old treasure map {P}.", "{T}, the wind brought {them} a treasure map."],
    [
        "{They} showed it to {M}, {ak} who loved adventures.",
        '"Let us go and look!" said {their} friend {M} the {k}.',
    ],
    ["They packed some {F} and set off.", "They walked over seven hills and had {F} for lunch."],
    [
        "They counted ten steps from a tall tree and began to dig.",
        "At the end of the path, they began to dig.",
    ],
    [
        "Deep in the ground was a box, and in the box was {aO}.",
        "There was no gold at all. There was only {aO}.",
    ],
    ['"It is even better than gold," said {N}.', '"What a wonderful treasure!" said {M}.'],
]
RIVER = [
    [
        "{T}, {their} {O} fell into the river and floated away.",
        "{T}, the wind blew {their} {O} into the water.",
    ],
    ['"Oh no, my {O}!" cried {N}.', "{N} ran along the bank, but the water was too fast."],
    ["{M} the {k} was resting {P} and saw it all.", "Down the stream sat {ak} named {M}."],
    ["{M} jumped in and caught it just in time.", "With a long stick, {M} pulled it out."],
    ["It was wet, but it was not broken.", "{N} dried it in the sun until it was like new."],
    [
        "To say thank you, {N} brought {F} for both of them.",
        '"How can I thank you?" asked {N}. "Just have some {F} with me," said {M}.',
    ],
]
SHOW = [
    [
        "{They} had {aO}, but {they} was too shy to show it to anyone.",
        "{They} kept {aO} and hid it from everyone.",
    ],
    ["{T}, there was a great party {P}.", "{T}, all the neighbors met {P}."],
    [
        '"Please bring your {O}," said {M} the {k}. "They will love it."',
        "{M} the {k} took {their} hand and said that everything would be fine.",
    ],
    ["{N} took a deep breath and stepped forward.", "{N} was nervous, but {they} was brave, too."],
    ["When they saw the {O}, everybody clapped.", "Soon everyone wanted to see the {O}."],
    ["There was music, and there was plenty to eat.", "They danced and sang until late."],
]
FIX = [
    ["{They} loved {their} {O} very much.", "{N} had {aO}, a gift from {their} grandmother."],
    ["{T}, it broke into two pieces.", "{T}, {they} dropped it, and it broke."],
    ["{N} sat down {P} and cried.", "{They} took the pieces and sat down {P}."],
    [
        "{M} the {k} came by and looked at the pieces.",
        "{Ak} named {M} stopped and asked what was wrong.",
    ],
    [
        '"I can fix it," said {M}, "but it will take some time."',
        '"We can fix this together," said {M}.',
    ],
    [
        "They worked with glue and string until the {O} was whole again.",
        "It took all day, but at last the {O} was as good as new.",
    ],
    ["Then they sat down and shared some {F}.", "{N} brought {F} to say thank you."],
]
TRADE = [
    [
        "{T}, {they} went to the market with a basket of {F}.",
        "{T}, {they} carried some {F} to the market.",
    ],
    ["There {they} met {M}, {ak} with {aO}.", "{M} the {k} was there and had {aO}."],
    [
        '"I am so hungry," said {M}, "and I have nothing to eat."',
        '"What lovely {F}!" said {M}. "May I have some?"',
    ],
    ["{N} gave {mthem} everything {they} had.", "{N} shared it all and asked for nothing."],
    [
        '"Then take my {O}," said {M}. "You are very kind."',
        "So {M} gave {them} the {O} as a present.",
    ],
    ["{N} took it home and kept it {P}.", "Later they played with it {P}."],
]

PLOTS = {
    "found": FOUND,
    "lost": LOST,
    "gift": GIFT,
    "storm": STORM,
    "wish": WISH,
    "race": RACE,
    "map": MAP,
    "river": RIVER,
    "show": SHOW,
    "fix": FIX,
    "trade": TRADE,
}
