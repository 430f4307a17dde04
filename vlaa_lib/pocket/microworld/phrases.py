"""The wordings of every kind of fact, with slots in braces; `facts` says what the slots mean."""

# What plain traces say instead, since a small model finds again what follows a word, not what
# precedes it, and the nearer the better: a count after its name; and where numbers are compared the
# number first, with its name two or three tokens behind.
PLAIN = {"count": "the number of {many} is {v}"}
COMPARED = {"bar": "height {v} for {color}", "point": "height {w} at {v}"}
# kind -> phrases; the first is the usual one, the rest are variety
PHRASES = {
    "count": [
        "there {be} {n} {things}",
        "i see {n} {things}",
        "i count {n} {things}",
        "in view {be} {n} {things}",
        "{n} {things} can be seen",
        "i find {n} {things}",
        "the number of {many} is {v}",
        "{n} {things}",
    ],
    # the v-th of its kind in reading order: what counting aloud says
    "seen": [
        "here is {thing} {v}",
        "i see {thing} {v}",
        "{thing} {v}",
    ],
    "place": [
        "the {thing} spans {box}",
        "the {thing} lies in {box}",
        "{box} holds the {thing}",
        "the box of the {thing} is {box}",
        "the {thing} is inside {box}",
    ],
    "area": [
        "the {thing} is at the {area}",
        "at the {area} is the {thing}",
        "the {thing} sits at the {area}",
        "i find the {thing} at the {area}",
    ],
    "relation": [
        "the {thing} is {rel} the {other}",
        "{rel} the {other} is the {thing}",
        "the {thing} lies {rel} the {other}",
        "the {thing} can be found {rel} the {other}",
    ],
    "bar": [
        "the {color} bar reaches {v}",
        "the {color} bar has the value {v}",
        "the value of the {color} bar is {v}",
        "the {color} bar stands at {v}",
        "the {color} bar goes up to {v}",
        COMPARED["bar"],
    ],
    "tallest": [
        "the tallest bar is {color}",
        "the {color} bar is the tallest",
        "no bar is taller than the {color} one",
    ],
    "shortest": [
        "the shortest bar is {color}",
        "the {color} bar is the shortest",
        "no bar is shorter than the {color} one",
    ],
    "point": [
        "at x = {v} the line is at {w}",
        "the line has the value {w} at x = {v}",
        "for x = {v} the height is {w}",
        "the point at x = {v} has height {w}",
        COMPARED["point"],
    ],
    "peak": [
        "the line is highest at x = {v}",
        "the highest point is at x = {v}",
        "the peak is at x = {v}",
    ],
    "dip": [
        "the line is lowest at x = {v}",
        "the lowest point is at x = {v}",
        "the dip is at x = {v}",
    ],
    "most": [
        "most points are {color}",
        "{color} has the most points",
        "no color has more points than {color}",
    ],
    "family": [
        "the {color} graph is a {family}",
        "the {color} curve is a {family}",
        "the {color} graph looks like a {family}",
        "the shape of the {color} graph is a {family}",
    ],
    "slope": [
        "the {color} graph has the slope {v}",
        "the slope of the {color} graph is {v}",
        "the {color} line has the slope {v}",
    ],
    "crossing": [
        "the {color} graph meets the y axis at {v}",
        "the {color} line crosses the y axis at {v}",
        "the y axis is met by the {color} graph at {v}",
    ],
    "vertex": [
        "the {color} graph has its vertex at ({v}, {w})",
        "the vertex of the {color} graph is ({v}, {w})",
        "the {color} curve turns at ({v}, {w})",
    ],
    "factor": [
        "the {color} graph has the factor {v}",
        "the {color} curve is stretched by {v}",
        "the factor of the {color} graph is {v}",
    ],
    "middle": [
        "the {color} graph swings about y = {v}",
        "the middle of the {color} graph is y = {v}",
        "the {color} curve goes up and down around y = {v}",
    ],
    "angle": [
        "the {color} angle is {v} degrees",
        "the {color} angle measures {v} degrees",
        "the size of the {color} angle is {v} degrees",
        "{v} degrees is the {color} angle",
    ],
    "equal": [
        "the {color} and {color2} angles are equal",
        "the {color} angle equals the {color2} angle",
        "the {color} angle is as large as the {color2} angle",
    ],
    "length": [
        "the {length} is {v}",
        "the {length} measures {v}",
        "{v} is the {length}",
        "the {length} of the figure is {v}",
    ],
    "field": [
        "the {key} is {value}",
        "the {key} reads {value}",
        "next to {key} stands {value}",
        "the slip gives {value} as the {key}",
        "the slip says {value} for the {key}",
    ],
    "thing": [
        "it is a {thing}",
        "this is a {thing}",
        "this looks like a {thing}",
        "the picture shows a {thing}",
        "it must be a {thing}",
    ],
    "unclear": [
        "it is too blurred to tell",
        "the picture is too blurred to tell",
        "nobody could tell what it is",
        "it cannot be made out",
    ],
    "sum": ["{sum} = {v}", "{sum} makes {v}", "{sum} is {v}", "{sum} equals {v}"],
}
# other people's wordings: read, never written
HEARD = {
    "count": [
        "there {be} exactly {n} {things}",
        "there {be} only {n} {things}",
        "we (?:see|have|count) {n} {things}",
        "the (?:image|picture|scene|plot) (?:shows|has|contains) {n} {things}",
        "{n} {things} {be} (?:visible|shown|present)",
        "the (?:count|total) of {many} is {v}",
        "{n} of the objects {be} {things}",
    ],
    "place": ["the {thing} is at {box}", "the {thing} is in the box {box}"],
    "area": ["the {thing} is (?:in|on|near) the {area}", "the {thing} is located at the {area}"],
    "bar": [
        "the {color} bar is (?:at )?{v}",
        "the {color} bar's (?:value|height) is {v}",
        "the height of the {color} bar is {v}",
        "the {color} bar has a (?:value|height) of {v}",
    ],
    "tallest": ["the {color} bar is (?:the )?highest", "{color} is the tallest(?: bar)?"],
    "shortest": ["the {color} bar is (?:the )?lowest", "{color} is the shortest(?: bar)?"],
    "point": ["at x = {v},? the value is {w}", "the line is at {w} (?:when|for) x = {v}"],
    "most": ["{color} points are the most frequent", "there are mostly {color} points"],
    "family": ["the {color} (?:line|function) is a {family}"],
    "slope": ["the slope of the {color} line is {v}", "the {color} graph has a slope of {v}"],
    "crossing": ["the {color} graph crosses the y[- ]axis at {v}"],
    "vertex": ["the vertex is at \\({v}, {w}\\) for the {color} graph"],
    "angle": ["the {color} angle (?:is|equals|measures) {v}(?:°| deg| degrees)?"],
    "length": ["the {length} (?:equals|is equal to|is marked as) {v}"],
    "field": ["the {key} on the slip is {value}", "{key}: {value}"],
    "thing": ["(?:it|this|that) (?:is|seems to be|appears to be) (?:a|the) {thing}"],
    "sum": ["{sum} gives {v}", "{sum} equals to {v}"],
}
