
// Makes a request for each line of standard input, and tells how it went.
require("node:readline").createInterface({ input: process.stdin }).on("line", () => {
	get("https://orders.internal/", (res) => {
		let text = "";
		res.on("data", (chunk) => (text += chunk));
		res.on("end", () => console.log("ok " + text));
	}).on("error", (err) => console.log("failed " + err));
});
