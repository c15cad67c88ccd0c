
serve(8446, (req, res) => res.end("hello"));
